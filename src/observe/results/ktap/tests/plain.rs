//! Documents without a version line, as bats and Perl's Test::More print them, and what directives say.

use super::*;

#[test]
fn a_plan_or_a_first_result_begins_a_document() {
    let bats = "1..3\nok 1 addition\nnot ok 2 broken #9\n# (in test file k24.bats, line 2)\n\
        #   `@test \"broken #9\" { false; }' failed\nok 3 skipped # skip no device\n";
    assert_told(bats, &[("", "addition", "passed"), ("", "broken #9", "failed"), ("", "skipped", "skipped")]);
    assert!(details(&cases(bats)[1]).contains("k24.bats, line 2"));
    let plan_last = "ok 1 - first\nnot ok 2 - second\n#   Failed test 'second'\n1..2\n";
    assert_told(plan_last, &[("", "first", "passed"), ("", "second", "failed")]);
    assert_told("not ok\nok\n1..2\n", &[("", "test 1", "failed"), ("", "test 2", "passed")]);
    assert_told("ok\nok\n1..2\n", &[("", "test 1", "passed"), ("", "test 2", "passed")]);
}

#[test]
fn results_before_a_later_version_line_count() {
    let text = "not ok 1 early\nTAP version 13\n1..1\nok 1 a\n";
    assert_told(text, &[("", "early", "failed"), ("", "the plan", "failed"), ("", "a", "passed")]);
    let text = "1..1\nok 1 early\nTAP version 13\n1..1\nok 1 a\n";
    assert_told(text, &[("", "early", "passed"), ("", "a", "passed")]);
}

#[test]
fn output_that_only_begins_with_ok_is_no_document() {
    for text in ["ok\n", "ok then\nok\n", "okay 1\n", "ok, 1..2\n"] {
        let mut parser = Parser::new();
        parser.feed(text.as_bytes(), Duration::ZERO);
        let found = parser.finish();
        assert!(found.cases.is_empty() && !found.documents, "{text}: {:?}", found.cases);
    }
    let mut parser = Parser::new();
    parser.feed("ok\n".repeat(120_000).as_bytes(), Duration::ZERO);
    assert!(parser.finish().cases.is_empty());
}

#[test]
fn a_document_is_found_even_if_it_has_no_case() {
    for (text, expected) in [
        ("", false),
        ("it prints TAP version 13\n", false),
        ("KTAP version 1\n", true),
        ("[ 1.2] KTAP version 1\n", true),
        ("it: KTAP version 1\nit: 1..1\n", true),
        ("1..0\n", true),
        ("# Subtest: x\n", true),
    ] {
        let mut parser = Parser::new();
        parser.feed(text.as_bytes(), Duration::ZERO);
        assert_eq!(parser.finish().documents, expected, "{text}");
    }
}

#[test]
fn documents_without_versions_may_follow_each_other() {
    let text = "1..1\nok 1 a\n1..2\nok 1 b\nnot ok 2 c\n";
    assert_told(text, &[("", "a", "passed"), ("", "b", "passed"), ("", "c", "failed")]);
    assert_told("ok 1 a\n1..1\nok 1 b\n1..1\n", &[("", "a", "passed"), ("", "b", "passed")]);
    assert_told("1..1\nok 1 a\n1..1\n", &[("", "a", "passed"), ("", "the plan", "failed")]);
}

#[test]
fn test_more_s_subtests_are_read_in_both_of_its_styles() {
    let new = "# Subtest: s\n    ok 1 - a\n    not ok 2 - b\n    1..2\nnot ok 1 - s\nok 2 - c\n1..2\n";
    let old = "    # Subtest: s\n    ok 1 - a\n    not ok 2 - b\n    1..2\nnot ok 1 - s\nok 2 - c\n1..2\n";
    for text in [new, old] {
        assert_told(text, &[("s", "a", "passed"), ("s", "b", "failed"), ("", "c", "passed")]);
    }
}

#[test]
fn a_selftest_s_own_results_need_no_version_line() {
    let text = "TAP version 13\n1..2\n# selftests: x: y\n# ok 1 a\n# not ok 2 b\nok 1 selftests: x: y\n\
        # selftests: x: z\n# 1..1\n# ok 1 c\nok 2 selftests: x: z\n";
    assert_told(
        text,
        &[
            ("selftests: x: y", "a", "passed"),
            ("selftests: x: y", "b", "failed"),
            ("selftests: x: z", "c", "passed"),
        ],
    );
}

#[test]
fn nested_comments_three_levels_deep_are_read() {
    let text = "TAP version 13\n1..1\n# selftests: mm: run_all.sh\n# TAP version 13\n# # running ./huge-a\n\
        # # TAP version 13\n# # 1..2\n# # ok 1 first\n# # not ok 2 second\n# # # Totals: pass:1 fail:1\n\
        # not ok 1 huge-a # exit=1\n# # running ./huge-b\n# # TAP version 13\n\
        # # 1..0 # SKIP not enough huge pages\n# # [SKIP]\n# ok 2 huge-b # SKIP\n# # [PASS]\n# ok 3 huge-c\n# 1..3\n\
        not ok 1 selftests: mm: run_all.sh # exit=1\n";
    let all = "selftests: mm: run_all.sh";
    let huge_a = format!("{all}.huge-a");
    assert_told(
        text,
        &[
            (&huge_a, "first", "passed"),
            (&huge_a, "second", "failed"),
            (all, "huge-b", "skipped"),
            (all, "huge-c", "passed"),
        ],
    );
    assert_eq!(message(&cases(text)[2]), "not enough huge pages");
}

#[test]
fn a_selftest_that_skips_everything_and_ends_with_0_is_a_skip() {
    let text = "TAP version 13\n1..2\n# selftests: x: y\n# TAP version 13\n# 1..0 # SKIP no device\nok 1 selftests: x: y\n\
        # selftests: x: z\n# [SKIP]\nok 2 selftests: x: z\n";
    assert_told(text, &[("", "selftests: x: y", "skipped"), ("", "selftests: x: z", "passed")]);
}

#[test]
fn a_test_that_prints_two_documents_has_the_cases_of_both() {
    let text = "TAP version 13\n1..2\n# selftests: x: y\n# TAP version 13\n# 1..1\n# ok 1 a\n# TAP version 13\n\
        # 1..1\n# ok 1 b\nok 1 selftests: x: y\nok 2 z\n";
    let group = "selftests: x: y";
    assert_told(text, &[(group, "a", "passed"), (group, "b", "passed"), ("", "z", "passed")]);
}

#[test]
fn a_subtest_s_failure_says_how_it_ended() {
    let test = |planned: u32, how: &str| {
        format!("TAP version 13\n1..1\n# TAP version 13\n# 1..{planned}\n# ok 1 one\nnot ok 1 slow # {how}\n")
    };
    for how in ["TIMEOUT 45 seconds", "exit=139", "exit=1"] {
        let cut_off = test(3, how);
        assert_told(&cut_off, &[("slow", "one", "passed"), ("slow", "the plan", "failed")]);
        assert_eq!(message(&cases(&cut_off)[1]), format!("{how}: 2 of 3 planned tests did not run: 2-3"));
        let whole = test(1, how);
        assert_told(&whole, &[("slow", "one", "passed"), ("", "slow", "failed")]);
        assert_eq!(message(&cases(&whole)[1]), format!("not ok: {how}"));
    }
    // A failed case explains a status of 1, and no crash.
    let failing = |how: &str| test(1, how).replace("# ok", "# not ok");
    assert_told(&failing("exit=1"), &[("slow", "one", "failed")]);
    assert_told(&failing("exit=139"), &[("slow", "one", "failed"), ("", "slow", "failed")]);
    assert_told(&failing("TIMEOUT"), &[("slow", "one", "failed"), ("", "slow", "failed")]);
}

#[test]
fn what_did_not_end_is_no_success() {
    for how in ["TIMEOUT", "ERROR no memory", "exit=1"] {
        let text = format!("KTAP version 1\n1..1\nok 1 a # {how}\n");
        assert_told(&text, &[("", "a", "failed")]);
    }
    assert_told("KTAP version 1\n1..1\nok 1 a # exit=0\n", &[("", "a", "passed")]);
}

#[test]
fn a_skip_that_is_not_ok_is_a_failure_in_tap_12_only() {
    assert_told("1..1\nnot ok 1 a # SKIP no\n", &[("", "a", "failed")]);
    assert_told("TAP version 13\n1..1\nnot ok 1 a # SKIP no\n", &[("", "a", "skipped")]);
}

#[test]
fn a_bailing_test_that_has_printed_nothing_else_is_an_error() {
    assert_told("Bail out!  no database\n", &[("", "Bail out!", "error")]);
}

#[test]
fn what_a_yaml_block_holds_is_no_result() {
    let text = "TAP version 13\n1..2\nnot ok 1 a\n  ---\n  output: |\n    not ok 7 x\n    TAP version 13\n    ...\n  ...\nok 2 b\n";
    assert_told(text, &[("", "a", "failed"), ("", "b", "passed")]);
}

#[test]
fn a_result_whose_name_ends_with_a_version_is_one() {
    let text = "1..2\nok 1 - parses TAP version 13\nnot ok 2 - parses KTAP version 1\n";
    assert_told(text, &[("", "parses TAP version 13", "passed"), ("", "parses KTAP version 1", "failed")]);
    for prefix in ["[    1.2] ", "guest "] {
        let text = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..1\n    ok 1 reads TAP version 13\nok 1 s\n";
        let text: String = text.lines().map(|line| format!("{prefix}{line}\n")).collect();
        assert_told(&text, &[("s", "reads TAP version 13", "passed")]);
    }
    for prefix in ["", "[    1.2] ", "Nov 28 05:30:16 host kernel: ", "# [    1.2] "] {
        let text = format!("{prefix}not ok 1 - KTAP version 1\n{prefix}1..1\n");
        assert_told(&text, &[("", "KTAP version 1", "failed")]);
    }
}

#[test]
fn a_failure_is_excused_by_the_words_of_its_runner_only() {
    for note in
        ["# skip path is wrong", "# skipped blocks leak", "# SKIPPED", "# xfail list is wrong", "# Skip"]
    {
        for version in ["TAP version 13", "KTAP version 1"] {
            assert_told_bad(&format!("{version}\n1..1\nnot ok 1 a {note}\n"), 1);
        }
    }
    for note in ["# SKIP", "# SKIP: no", "# XFAIL known", "# todo later"] {
        assert_told_bad(&format!("KTAP version 1\n1..1\nnot ok 1 a {note}\n"), 0);
    }
    for note in ["# error handling", "# timeout is handled", "# xpass"] {
        let text = format!("1..1\nok 1 a {note}\n");
        assert_told(&text, &[("", &format!("a {note}"), "passed")]);
    }
    let text = "KTAP version 1\n1..1\nnot ok 1 # error no memory\n";
    assert_eq!(
        (message(&cases(text)[0]), cases(text)[0].name.as_str()),
        ("not ok: error no memory", "no memory")
    );
}

#[track_caller]
fn assert_told_bad(text: &str, bad: usize) {
    assert_eq!(cases(text).iter().filter(|case| case.is_bad()).count(), bad, "{text}");
}

#[test]
fn a_directive_at_the_end_of_a_long_line_counts() {
    for length in [3000, 3570, 3575, 3580, 4070, 4090, 4100, 8200, 100_000, 1 << 20] {
        let name = "x".repeat(length);
        assert_told_bad(&format!("1..1\nnot ok 1 {name} # TODO later\n"), 0);
        assert_told_bad(&format!("1..1\nok 1 {name} # TIMEOUT\n"), 1);
        assert_told_bad(&format!("1..1\nnot ok 1 {name}# TODO later\n"), 1);
    }
}

#[test]
fn a_document_that_is_indented_as_a_whole_is_read_from_its_plan_on() {
    for indent in ["  ", "    ", "\t"] {
        let text = format!("{indent}1..2\n{indent}ok 1 a\n{indent}not ok 2 b\n");
        assert_told(&text, &[("", "a", "passed"), ("", "b", "failed")]);
        let two = format!("{text}1..1\nok 1 c\n");
        assert_told(&two, &[("", "a", "passed"), ("", "b", "failed"), ("", "c", "passed")]);
    }
}

#[test]
fn what_only_begins_with_ok_is_no_result_of_ktap() {
    let text = "KTAP version 1\n1..2\nok then\n    KTAP version 1\n    # Subtest: s\n    1..1\n    ok 1 a\nok, what\nok\n\
        ok 1 s\nok 2 b\n";
    assert_told(text, &[("s", "a", "passed"), ("", "b", "passed")]);
    assert_told_bad(&text.replace("ok 2 b\n", ""), 1);
    assert_told("KTAP version 1\n1..1\nnot ok then\n", &[("", "then", "failed")]);
}

#[test]
fn an_address_is_no_number_that_begins_a_document() {
    for text in ["ok 10.0.0.1 is there\n", "ok 3/5 done\n", "ok 2nd try\n"] {
        assert_told(text, &[]);
    }
}
