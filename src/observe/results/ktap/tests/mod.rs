//! Documents in the shapes that kselftest, KUnit and other writers of TAP print.

mod logs;
mod plain;
mod prove;

use super::*;
use crate::observe::results::Verdict;

fn cases(text: &str) -> Vec<Case> {
    let mut parser = Parser::new();
    // However it is cut.
    text.as_bytes().chunks(5).for_each(|chunk| parser.feed(chunk, Duration::ZERO));
    parser.finish().cases
}

/// Group, name and what came of it, in short.
fn told(text: &str) -> Vec<(String, String, &'static str)> {
    let told = |case: Case| {
        let verdict = match case.verdict {
            Verdict::Passed => "passed",
            Verdict::Skipped(_) => "skipped",
            Verdict::Failed(..) => "failed",
            Verdict::Error(..) => "error",
        };
        (case.group, case.name, verdict)
    };
    cases(text).into_iter().map(told).collect()
}

#[track_caller]
fn assert_told(text: &str, expected: &[(&str, &str, &str)]) {
    let told = told(text);
    let told: Vec<_> =
        told.iter().map(|(group, name, verdict)| (group.as_str(), name.as_str(), *verdict)).collect();
    assert_eq!(told, expected);
}

fn details(case: &Case) -> &str {
    match &case.verdict {
        Verdict::Failed(_, details) | Verdict::Error(_, details) => details,
        other => panic!("{other:?}"),
    }
}

fn message(case: &Case) -> &str {
    match &case.verdict {
        Verdict::Failed(message, _) | Verdict::Error(message, _) | Verdict::Skipped(message) => message,
        Verdict::Passed => panic!("passed"),
    }
}

const KUNIT: &str = "\
[    0.521234] KTAP version 1
[    0.521300] 1..2
[    0.521400]     KTAP version 1
[    0.521401]     # Subtest: list
[    0.521402]     # module: list_test
[    0.521403]     1..2
[    0.521500]     ok 1 list_init
[    0.521600]     # list_add: EXPECTATION FAILED at lib/list-test.c:61
[    0.521600]     Expected 1 + 1 == 3, but
[    0.521600]         1 + 1 == 2 (0x2)
[    0.521700]     not ok 2 list_add
[    0.521701] # list: pass:1 fail:1 skip:0 total:2
[    0.521702] # Totals: pass:1 fail:1 skip:0 total:2
[    0.521703] not ok 1 list
[    0.521800] random: crng init done
[    0.521900]     KTAP version 1
[    0.521901]     # Subtest: example
[    0.521902]     1..2
[    0.522000]         KTAP version 1
[    0.522001]         # Subtest: params
[    0.522002]         ok 1 value 1
[    0.522003]         ok 2 value 2 # SKIP not today
[    0.522004]     # params: pass:1 fail:0 skip:1 total:2
[    0.522005]     ok 1 params
[    0.522006]     ok 2 marked # SKIP this test is skipped
[    0.522007] ok 2 example
";

#[test]
fn kunit_in_the_kernel_log_is_read_to_its_parameters() {
    assert_told(
        KUNIT,
        &[
            ("list", "list_init", "passed"),
            ("list", "list_add", "failed"),
            ("example.params", "value 1", "passed"),
            ("example.params", "value 2", "skipped"),
            ("example", "marked", "skipped"),
        ],
    );
    let cases = cases(KUNIT);
    let expected = "    # list_add: EXPECTATION FAILED at lib/list-test.c:61\n    Expected 1 + 1 == 3, but\n        \
        1 + 1 == 2 (0x2)\n";
    assert_eq!(details(&cases[1]), expected);
    assert_eq!(message(&cases[4]), "this test is skipped");
}

const KSELFTEST: &str = "\
make: Entering directory 'tools/testing/selftests'
TAP version 13
1..4
# timeout set to 45
# selftests: timers: posix_timers
# TAP version 13
# 1..3
# # Testing posix timers. False negative may happen on CPU execution
# ok 1 check_itimer
# # check_timer took too long
# not ok 2 check_timer
# ok 3 # SKIP check_rr needs root
# # Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
not ok 1 selftests: timers: posix_timers # exit=1
# timeout set to 45
# selftests: timers: mqueue-lat
# Testing Mqueue Lat:
#  ok then
ok 2 selftests: timers: mqueue-lat
# selftests: timers: raw_skew
# Segmentation fault
not ok 3 selftests: timers: raw_skew # exit=139
# selftests: timers: nsleep-lat
not ok 4 selftests: timers: nsleep-lat # TIMEOUT 45 seconds
";

#[test]
fn kselftest_s_tests_are_read_out_of_their_comments() {
    assert_told(
        KSELFTEST,
        &[
            ("selftests: timers: posix_timers", "check_itimer", "passed"),
            ("selftests: timers: posix_timers", "check_timer", "failed"),
            ("selftests: timers: posix_timers", "check_rr needs root", "skipped"),
            ("", "selftests: timers: mqueue-lat", "passed"),
            ("", "selftests: timers: raw_skew", "failed"),
            ("", "selftests: timers: nsleep-lat", "failed"),
        ],
    );
    let cases = cases(KSELFTEST);
    assert!(details(&cases[1]).starts_with("# # check_timer took too long\n"), "{:?}", cases[1]);
    assert_eq!(message(&cases[4]), "not ok: exit=139");
    assert!(details(&cases[4]).contains("# Segmentation fault\n"));
    assert_eq!(message(&cases[5]), "not ok: TIMEOUT 45 seconds");
}

#[test]
fn tap_14_names_its_subtests_before_them_and_explains_after() {
    let text = "TAP version 14\n# Subtest: foo\n    ok 1 - bar\n    not ok 2 - baz\n      ---\n      message: no\n      \
        ok: 1\n      ...\n    1..2\nnot ok 1 - foo\nnot ok 2 - later # TODO write it\nok 3 - \\# 5\n1..3\n";
    assert_told(
        text,
        &[
            ("foo", "bar", "passed"),
            ("foo", "baz", "failed"),
            ("", "later", "skipped"),
            ("", "# 5", "passed"),
        ],
    );
    assert_eq!(details(&cases(text)[1]), "      message: no\n      ok: 1\n");
}

#[test]
fn three_dashes_that_begin_no_block_swallow_no_result() {
    let text = "TAP version 14\n1..2\nok 1 a\n--- a/file\n---\nnot ok 2 b\n";
    assert_told(text, &[("", "a", "passed"), ("", "b", "failed")]);
    let text = "TAP version 14\n1..2\nok 1 a\n  ---\n  never: closed\nnot ok 2 b\n";
    assert_told(text, &[("", "a", "passed"), ("", "b", "failed")]);
}

#[test]
fn a_comment_after_a_failure_explains_it_in_tap() {
    let cases = cases("TAP version 13\n1..2\nnot ok 1 a\n#   Failed test 'a'\n#   at line 3\nok 2 b\n");
    assert_eq!(details(&cases[0]), "#   Failed test 'a'\n#   at line 3\n");
}

const HARNESS: &str = "\
TAP version 13
1..3
# Starting 3 tests from 1 test cases.
#  RUN           global.a ...
# a.c:10:a:Expected 1 (1) == 2 (2)
# a: Test terminated by assertion
#          FAIL  global.a
not ok 1 global.a
#  RUN           global.b ...
#            OK  global.b
ok 2 global.b
#  RUN           global.c ...
#      SKIP      no such device
#            OK  global.c
ok 3 global.c # SKIP no such device
# FAILED: 2 / 3 tests passed.
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
";

#[test]
fn kselftest_s_harness_explains_a_failure_before_it_only() {
    assert_told(
        HARNESS,
        &[("", "global.a", "failed"), ("", "global.b", "passed"), ("", "global.c", "skipped")],
    );
    let details = details(&cases(HARNESS)[0]).to_owned();
    assert!(
        details.ends_with("#          FAIL  global.a\n") && details.contains("a.c:10:a:Expected"),
        "{details}"
    );
}

#[test]
fn planned_tests_that_do_not_run_are_failures() {
    let text = "KTAP version 1\n1..5\nok 1 a\nok 3 c\n";
    assert_told(text, &[("", "a", "passed"), ("", "c", "passed"), ("", "the plan", "failed")]);
    assert_eq!(message(&cases(text)[2]), "3 of 5 planned tests did not run: 2, 4-5");
    assert_told("KTAP version 1\n1..1\n", &[("", "the plan", "failed")]);
    // As far as anybody counts.
    let text = "KTAP version 1\n1..99999999999999999999999\nok 18446744073709551615 z\nok 2 b\n";
    assert_eq!(cases(text).len(), 3);
}

#[test]
fn tests_that_nobody_planned_are_failures() {
    let text = "KTAP version 1\n1..1\nok 1 a\nok 2 b\n";
    assert_eq!(message(&cases(text)[2]), "2 tests ran and 1 were planned");
}

#[test]
fn a_subtest_that_is_cut_off_fails_in_its_own_plan_only() {
    let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..3\n    ok 1 a\n";
    assert_told(text, &[("s", "a", "passed"), ("s", "the plan", "failed")]);
}

#[test]
fn bailing_out_is_one_error_and_ends_the_test_that_does() {
    assert_told(
        "TAP version 13\n1..9\nok 1 a\nBail out! no disk\n",
        &[("", "a", "passed"), ("", "Bail out!", "error")],
    );
    let text = "TAP version 13\n1..2\n# TAP version 13\n# 1..9\n# Bail out! no disk\n# # 0 of 9\nnot ok 1 x # exit=1\nok 2 y\n";
    assert_told(text, &[("x", "Bail out!", "error"), ("", "y", "passed")]);
    assert_eq!(message(&cases(text)[0]), "no disk");
}

#[test]
fn directives_decide_who_failed() {
    let text = "TAP version 13\n1..8\nok 1 # XFAIL known\nnot ok 2 x # XFAIL known\nok 3 y # TODO z\nnot ok 4 # SKIP no\n\
        ok 5 # XPASS fine\nnot ok 6 # error broke\nok 7 z #SKIP\nnot ok 8\n";
    assert_told(
        text,
        &[
            ("", "known", "skipped"),
            ("", "x", "skipped"),
            ("", "y", "passed"),
            ("", "no", "skipped"),
            ("", "fine", "passed"),
            ("", "broke", "failed"),
            ("", "z", "skipped"),
            ("", "test 8", "failed"),
        ],
    );
}

#[test]
fn a_plan_of_none_tells_why() {
    let cases = cases("TAP version 13\n1..0 # SKIP not on this machine\n");
    assert_eq!((cases[0].name.as_str(), message(&cases[0])), ("all tests", "not on this machine"));
    assert_eq!(cases.len(), 1);
}

#[test]
fn a_failed_test_of_passed_subtests_is_a_case_of_its_own() {
    let text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  ok 1 a\n# suite exit failed\nnot ok 1 s\n";
    assert_told(text, &[("s", "a", "passed"), ("", "s", "failed")]);
}

#[test]
fn documents_may_follow_each_other() {
    let text = "TAP version 13\n1..1\nok 1 a\nmake: next\nTAP version 13\n1..2\nok 1 b\nTAP version 13\n1..1\nnot ok 1 c\n";
    assert_told(
        text,
        &[("", "a", "passed"), ("", "b", "passed"), ("", "the plan", "failed"), ("", "c", "failed")],
    );
}

#[test]
fn results_outside_of_a_document_are_none() {
    for text in ["", "\n\n", "# ok 1\n", "# Bail out!\n", "  ok 1\n", "it prints TAP version 13\nand more\n"]
    {
        assert_told(text, &[]);
    }
    // Nor are lines that are deeper than anything that was begun.
    assert_told("KTAP version 1\n1..1\n   not ok 1 x\n# not ok 2 y\nok 1 a\n", &[("", "a", "passed")]);
}

#[test]
fn carriage_returns_and_a_missing_last_line_end_do_no_harm() {
    assert_told("TAP version 13\r\n1..1\r\nnot ok 1 a", &[("", "a", "failed")]);
}

#[test]
fn a_result_s_time_is_what_passed_since_the_one_before() {
    let mut parser = Parser::new();
    parser.feed(b"KTAP version 1\n1..2\n", Duration::from_secs(1));
    parser.feed(b"ok 1 a\n", Duration::from_secs(3));
    parser.feed(b"ok 2 b\n", Duration::from_secs(8));
    let times: Vec<_> = parser.finish().cases.iter().map(|case| case.time.as_secs()).collect();
    assert_eq!(times, [3, 5]);
}

#[test]
fn an_endless_stream_fits_into_bounded_memory_and_hides_no_failure() {
    let mut parser = Parser::new();
    parser.feed(b"TAP version 13\n", Duration::ZERO);
    let noise = [vec![b'x'; 100_000], vec![b'\n']].concat();
    let failure = [b"not ok ".to_vec(), vec![b'n'; 3000], vec![b'\n']].concat();
    for _ in 0..3 {
        parser.feed(&noise, Duration::ZERO);
        for _ in 0..20_000 {
            parser.feed(b"some line that goes before\nok fine\n", Duration::ZERO);
        }
    }
    parser.feed(&failure, Duration::ZERO);
    parser.feed(b"1..60001\n", Duration::ZERO);
    let cases = parser.finish().cases;
    assert_eq!(cases.len(), 50_001);
    assert_eq!(message(&cases[50_000]), "10001 more cases were not kept, 1 of them bad");

    let mut parser = Parser::new();
    parser.feed(b"KTAP version 1\n", Duration::ZERO);
    for _ in 0..3000 {
        parser.feed(&noise, Duration::ZERO);
        parser.feed(&failure, Duration::ZERO);
    }
    parser.feed(b"1..3000\n", Duration::ZERO);
    let cases = parser.finish().cases;
    assert_eq!(cases.len(), 3000);
    let text: usize = cases.iter().map(|case| case.name.len() + details(case).len()).sum();
    assert!(text < 12 << 20, "{text}");
}

#[test]
fn nesting_has_an_end() {
    let text: String = (0..1000).map(|depth| format!("{:depth$}KTAP version 1\n", "")).collect();
    let last = cases(&text).pop().unwrap();
    assert_eq!(
        (last.name.as_str(), message(&last)),
        ("more cases", "984 more cases were not kept, 984 of them bad")
    );
    let text = "KTAP version 1\n    KTAP version 1\n".repeat(60_000);
    let cases = cases(&text);
    assert!(cases.len() == 50_001 && cases.iter().all(Case::is_bad), "{}", cases.len());
}

#[test]
fn any_bytes_are_read_without_a_panic() {
    // Lines of the protocol in an order that no writer has, by a fixed sequence of pseudo-random numbers.
    let pieces: [&[u8]; 32] = [
        b"KTAP version 1\n",
        b"TAP version 14\n",
        b"1..3\n",
        b"1..0 # SKIP\n",
        b"ok 1 a\n",
        b"not ok 2 b # x\n",
        b"# ",
        b"    ",
        b"  ",
        b"---\n",
        b"...\n",
        b"# Subtest: s\n",
        b"Bail out!\n",
        b"\xff\xfe\n",
        b"[ 1.2] ",
        b"\n",
        b"ok\n",
        b"ok 18446744073709551615 # TIMEOUT\n",
        b"not ok # exit=139\n",
        b"1..18446744073709551615\n",
        b"6,1,2,-;",
        b"<6>",
        b"[  T1] ",
        b"\x1b[32m",
        b"\x1b[",
        "\u{e4}\u{20ac}: ".as_bytes(),
        b"# selftests: x: y\n",
        b"\t",
        b"\\#",
        b"\r\n",
        b"not ",
        b"host kernel: ",
    ];
    let mut state = 1_u32;
    let mut parser = Parser::new();
    for _ in 0..200_000 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        parser.feed(pieces[(state >> 27) as usize], Duration::ZERO);
        assert!(parser.streams.len() <= STREAMS && parser.line.len() <= 2 * LINE);
    }
    let cases = parser.finish().cases;
    assert!((1000..=50_001).contains(&cases.len()), "{}", cases.len());
}
