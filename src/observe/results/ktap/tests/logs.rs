//! Documents in a kernel's log, as each of its readers shows it.

use super::*;

/// A suite with a case that passes, one that fails, and a line of another subsystem's.
const SUITE: [&str; 10] = [
    "KTAP version 1",
    "1..1",
    "    KTAP version 1",
    "    # Subtest: fake",
    "    1..2",
    "    ok 1 a",
    "random: crng init done",
    "    # b: EXPECTATION FAILED at x.c:3",
    "    not ok 2 b",
    "not ok 1 fake",
];

const EXPECTED: [(&str, &str, &str); 2] = [("fake", "a", "passed"), ("fake", "b", "failed")];

/// The suite with what `prefix` gives before each line.
fn with(prefix: impl Fn(usize) -> String) -> String {
    SUITE.iter().enumerate().map(|(index, line)| format!("{}{line}\n", prefix(index))).collect()
}

#[test]
fn a_suite_is_found_behind_the_prefix_of_each_reader_of_the_log() {
    let prefixes: [(&str, &dyn Fn(usize) -> String); 14] = [
        ("none", &|_| String::new()),
        ("dmesg", &|n| format!("[{:5}.{:06}] ", 7 + n, n)),
        ("dmesg of a long run", &|n| format!("[{:5}.{:06}] ", 99_995 + n, n)),
        ("dmesg -T", &|n| format!("[Sat Nov 28 05:30:{:02} 2026] ", 10 + n)),
        ("dmesg -x", &|n| format!("kern  :{:6}: [    0.{n:06}] ", ["info", "notice"][n % 2])),
        ("dmesg -r", &|n| format!("<{n}>[    0.{n:06}] ")),
        ("dmesg -H", &|n| if n == 0 { "[Nov28 05:30] ".to_owned() } else { format!("[  +0.{n:06}] ") }),
        ("dmesg -L", &|n| format!("\u{1b}[32m[    0.{n:06}] \u{1b}[0m")),
        ("dmesg --time-format iso", &|n| format!("2026-11-28T05:30:16,{n:06}+00:00 ")),
        ("journalctl -k", &|n| format!("Mär 28 05:30:{:02} my-host.lan kernel: ", 10 + n)),
        ("/dev/kmsg", &|n| format!("{},{},{},{};", n % 7, 95 + n, 999_990 + n * 7, ["-", "c"][n % 2])),
        ("/dev/kmsg with callers", &|n| format!("6,{},{},-,caller=T{n};", 95 + n, 999_990 + n * 7)),
        ("PRINTK_CALLER", &|n| format!("[  520.{n:06}] [   T391{n}] ")),
        ("PRINTK_CALLER of interrupts", &|n| format!("[  520.{n:06}][{:>7}] ", ["T1", "C12"][n % 2])),
    ];
    for (name, prefix) in prefixes {
        let text = with(prefix);
        assert_told(&text, &EXPECTED);
        let details = details(&cases(&text)[1]).to_owned();
        assert!(details.ends_with("    # b: EXPECTATION FAILED at x.c:3\n"), "{name}: {details}");
    }
}

#[test]
fn two_logs_may_be_written_in_turns() {
    let log = with(|n| format!("[    0.{n:06}] "));
    let mut user = "TAP version 13\n1..3\nok 1 x\nnot ok 2 y\nok 3 z\n".lines();
    let mut text = String::new();
    for line in log.lines() {
        text += &format!("{line}\n{}\n", user.next().unwrap_or("other output"));
    }
    assert_told(
        &text,
        &[
            ("", "x", "passed"),
            ("", "y", "failed"),
            ("", "z", "passed"),
            ("fake", "a", "passed"),
            ("fake", "b", "failed"),
        ],
    );
}

#[test]
fn a_log_after_a_document_and_another_document_after_it_are_read() {
    let text = format!("1..1\nok 1 first\n{}1..1\nnot ok 1 last\n", with(|n| format!("[    0.{n:06}] ")));
    assert_told(&text, &[("", "first", "passed"), EXPECTED[0], EXPECTED[1], ("", "last", "failed")]);
}

#[test]
fn kunit_s_modules_before_linux_6_2_print_no_version() {
    let suite = |prefix: &str, indent: &str| {
        let lines = ["# Subtest: fake", "1..2", "ok 1 - a", "not ok 2 - b"];
        let inner: String = lines.iter().map(|line| format!("{prefix}{indent}{line}\n")).collect();
        format!("{inner}{prefix}# fake: pass:1 fail:1 skip:0 total:2\n{prefix}not ok 7 - fake\n")
    };
    for prefix in
        ["", "[    1.234567] ", "[    1.234567] [   T45] ", "6,1,2,-;", "Nov 28 05:30:16 host kernel: "]
    {
        for indent in ["    ", "\t"] {
            assert_told(&suite(prefix, indent), &EXPECTED);
            // A second module, whose number goes on.
            let two = format!("{}{}", suite(prefix, indent), suite(prefix, indent).replace("not ok", "ok"));
            let passed = [("fake", "a", "passed"), ("fake", "b", "passed")];
            assert_told(&two, &[EXPECTED, passed].concat());
            // Modules follow the suites that are built in.
            let built_in = format!("{prefix}TAP version 14\n{prefix}1..1\n{}", suite(prefix, indent));
            let built_in = built_in.replace("ok 7", "ok 1");
            assert_told(&format!("{built_in}{}", suite(prefix, indent)), &[EXPECTED, EXPECTED].concat());
        }
    }
}

#[test]
fn a_suite_with_a_version_and_nothing_around_it_needs_no_plan_around_it() {
    // So modules print it from Linux 6.2 to 6.5, and a run from debugfs.
    let suite = |prefix: &str, second: &str, number: u8| {
        let lines = ["KTAP version 1", "# Subtest: fake", "1..2", "ok 1 a", second];
        let inner: String = lines.iter().map(|line| format!("{prefix}    {line}\n")).collect();
        let own = if second.starts_with("not") { "not ok" } else { "ok" };
        format!("{inner}{prefix}# fake: pass:1 fail:1 skip:0 total:2\n{prefix}{own} {number} fake\n")
    };
    let passed = [("fake", "a", "passed"), ("fake", "b", "passed")];
    for prefix in
        ["", "[    1.234567] ", "[    1.234567] [   T45] ", "6,1,2,-;", "Nov 28 05:30:16 host kernel: "]
    {
        let (good, bad) = (suite(prefix, "ok 2 b", 1), suite(prefix, "not ok 2 b", 1));
        assert_told(&good, &passed);
        assert_told(&bad, &EXPECTED);
        assert_told(&format!("{good}{}", suite(prefix, "not ok 2 b", 2)), &[passed, EXPECTED].concat());
        assert_told(&format!("{good}{bad}"), &[passed, EXPECTED].concat());
        // A run after that of what is built in, whose document is complete.
        let built_in = format!("{prefix}KTAP version 1\n{prefix}1..1\n{good}");
        assert_told(&format!("{built_in}{good}{bad}"), &[passed, passed, EXPECTED].concat());
        // One more than was planned is no suite of its own.
        let more = format!("{built_in}{}", suite(prefix, "ok 2 b", 2));
        assert!(cases(&more).iter().any(Case::is_bad), "{more}");
        // Its own result never comes.
        let lost: String = good.lines().take(5).map(|line| format!("{line}\n")).collect();
        assert_eq!(cases(&lost).len(), 2, "as it was");
    }
}

#[test]
fn a_module_that_crashes_within_its_suite_fails() {
    let text =
        "[ 1.2]     # Subtest: s\n[ 1.2]     1..2\n[ 1.2]     ok 1 - a\n[ 1.2] BUG: kernel NULL pointer\n";
    assert_told(text, &[("s", "a", "passed"), ("s", "the plan", "failed")]);
    let text =
        "[ 1.2]     # Subtest: s\n[ 1.2]     1..1\n[ 1.2]     ok 1 - a\n[ 1.2] BUG: kernel NULL pointer\n";
    assert_told(text, &[("s", "a", "passed"), ("s", "the result", "failed")]);
    let text =
        format!("{text}[ 1.3]     # Subtest: t\n[ 1.3]     1..1\n[ 1.3]     ok 1 - b\n[ 1.3] ok 2 - t\n");
    assert_told(&text, &[("s", "a", "passed"), ("s", "the result", "failed"), ("t", "b", "passed")]);
}

#[test]
fn a_log_whose_beginning_is_lost_hides_no_failure() {
    let log = with(|n| format!("[    0.{n:06}] "));
    for skipped in 1..SUITE.len() {
        let rest: String = log.lines().skip(skipped).map(|line| format!("{line}\n")).collect();
        assert!(cases(&rest).iter().any(Case::is_bad), "{rest}");
    }
    for taken in 1..SUITE.len() {
        let rest: String = log.lines().take(taken).map(|line| format!("{line}\n")).collect();
        assert!(cases(&rest).iter().any(Case::is_bad), "{rest}");
    }
}

#[test]
fn a_failure_that_is_cut_by_the_prefix_s_width_is_one() {
    // The only version line is a subtest's, so that the prefix seems longer than it is.
    let text = "[ 1.2]     KTAP version 1\n[ 1.2]     1..1\n[ 1.2]     ok 1 a\n[ 1.2] not ok 1 suite\n";
    assert!(cases(text).iter().any(|case| case.name == "suite" && case.is_bad()));
    let text = "log: KTAP version 1\nlog: 1..1\nabc not ok 1 x\n";
    assert!(cases(text).iter().any(Case::is_bad));
}

#[test]
fn a_test_that_prints_the_kernel_s_log_has_its_cases_read() {
    let log: String =
        with(|n| format!("[    0.{n:06}] ")).lines().map(|line| format!("# {line}\n")).collect();
    let text = format!("TAP version 13\n1..1\n# selftests: lib: x.sh\n{log}ok 1 selftests: lib: x.sh\n");
    assert_told(&text, &[EXPECTED[0], EXPECTED[1], ("", "selftests: lib: x.sh", "passed")]);
}

#[test]
fn many_logs_are_followed_no_more_than_few_at_a_time() {
    let text: String = (0..1000).map(|n| format!("{}{n}: KTAP version 1\n", ".".repeat(n % 200))).collect();
    let mut parser = Parser::new();
    parser.feed(text.as_bytes(), Duration::ZERO);
    assert!(parser.streams.len() <= STREAMS);
    assert!(parser.finish().cases.len() > 100);
}

#[test]
fn a_document_has_the_same_cases_whatever_is_before_its_lines() {
    let prefixes: [&dyn Fn(usize) -> String; 4] = [
        &|n| format!("[{:5}.{:06}] ", 99_998 + n, n),
        &|n| format!("[    1.{n:06}] [   T39{n}] "),
        &|n| format!("6,{},{},-;", 97 + n, 999_998 + n),
        &|n| format!("Nov 28 05:30:{:02} host kernel: ", 10 + n),
    ];
    for document in prove::documents() {
        for prefix in prefixes {
            let text: String =
                document.lines().enumerate().map(|(n, line)| format!("{}{line}\n", prefix(n))).collect();
            assert_eq!(told(&text), told(&document), "{text}");
        }
    }
}

#[test]
fn kunit_s_suites_without_a_version_are_found_behind_any_prefix() {
    let suite = ["    # Subtest: fake", "    1..2", "    ok 1 - a", "    not ok 2 - b", "not ok 1 - fake"];
    for prefix in [
        "2026-11-28T05:30:16,123456+00:00 ",
        "2026-11-28T05:30:16.123456+00:00 host kernel: ",
        "user  :notice: [    1.234567] ",
        "kern  :info  : 2026-11-28T05:30:16,123456+00:00 ",
        "Nov 28 05:30:16 host kernel[0]: ",
        "guest1| [    1.234567] ",
        "console: ",
    ] {
        let text: String = suite.iter().map(|line| format!("{prefix}{line}\n")).collect();
        assert_told(&text, &EXPECTED);
        let commented: String = text.lines().map(|line| format!("# {line}\n")).collect();
        let text = format!("TAP version 13\n1..1\n# selftests: lib: x\n{commented}ok 1 selftests: lib: x\n");
        assert_eq!(cases(&text).iter().filter(|case| case.is_bad()).count(), 1, "{text}");
    }
    // What greps for a suite's name shows none.
    let mut parser = Parser::new();
    parser.feed(b"kunit/usage.rst:12:    # Subtest: fake\n", Duration::ZERO);
    let found = parser.finish();
    assert!(!found.documents && found.cases.is_empty(), "{:?}", found.cases);
}

#[test]
fn kunit_before_linux_5_10_prints_a_version_and_no_plan() {
    let suite = |number: u32| {
        format!("\t# Subtest: fake\n\t1..2\n\tok 1 - a\n\tnot ok 2 - b\nnot ok {number} - fake\n")
    };
    let text = format!("TAP version 14\n{}{}", suite(1), suite(2));
    assert_told(&text, &[EXPECTED, EXPECTED].concat());
    let logged: String = text.lines().map(|line| format!("[    1.234567] {line}\n")).collect();
    assert_told(&logged, &[EXPECTED, EXPECTED].concat());
    let cut_off = "TAP version 14\n\t# Subtest: fake\n\t1..2\n\tok 1 - a\n";
    assert_told(cut_off, &[("fake", "a", "passed"), ("fake", "the plan", "failed")]);
}
