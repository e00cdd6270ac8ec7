//! `kite bench exits`.

use crate::bench::folder::Folder;
use crate::support::attempt::Attempt;
use crate::support::child::End;
use crate::support::kvm;

/// Runs `kite bench exits`.
fn exits(arguments: &[&str]) -> End {
    Attempt::new().run([&["bench", "exits"], arguments].concat())
}

fn refused(arguments: &[&str], word: &str) {
    exits(arguments).assert_refusal(word);
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    refused(&["--only", "pio.in.3"], "pio.in.3");
    refused(&["--only", "nothing*"], "nothing*");
    refused(&["--time", "0"], "--time");
    refused(&["--blocks", "0"], "--blocks");
    refused(&["--cpus", "9999,0"], "no CPU 9999");
    refused(&["--cpus", "0,0,0"], "two CPUs");
    refused(&["--json", "/nonexistent/file.json"], "/nonexistent");
    refused(&["--html", "/nonexistent/file.html"], "/nonexistent");
    refused(&["--compare", "/nonexistent/old.json"], "/nonexistent/old.json");
    refused(&["--payload", "/tmp/file"], "--only");
    refused(&["--only", "pio.*", "--payload", "/tmp/file"], "one payload");
    refused(&["--only", "kick", "--payload", "/tmp/file"], "kick");
    refused(&["--only", "cpuid", "--payload", "/nonexistent/file"], "/nonexistent");
}

#[test]
fn a_report_of_another_version_is_refused_before_anything_is_measured() {
    let folder = Folder::new();
    for (text, word) in [(r#"{"schema":"exits/9"}"#, "exits/9"), ("[]", "no report"), ("", "no report")] {
        std::fs::write(folder.path("old.json"), text).unwrap();
        let end = exits(&["--compare", &folder.path("old.json")]);
        assert_eq!(end.status.code(), Some(125));
        assert!(end.stderr.contains(word) && end.stderr.lines().count() == 1, "{}", end.stderr);
    }
}

#[test]
fn the_list_names_every_payload() {
    let all = exits(&["--list"]);
    assert_eq!((all.status.code(), all.stderr.as_str()), (Some(0), ""));
    for id in
        ["null", "kvmrun.imm", "pio.in.1", "mmio.w.8", "ioev.rt.epoll", "ipi.hlt.x2apic", "dirty.get.100"]
    {
        assert!(all.text().lines().any(|line| line.split(' ').next() == Some(id)), "{id}");
    }
    let some = exits(&["--list", "--only", "mmio.*,cpuid"]);
    assert_eq!(some.text().lines().count(), 7);
}

#[test]
fn each_payload_is_a_value_or_a_reasoned_skip_and_can_be_told_again() {
    needs!(kvm());
    let folder = Folder::new();
    let few = ["--time", "3ms", "--blocks", "3"];
    let only = [
        "--only",
        "null,kvmrun.imm,cpuid,hypercall,pio.out.4,pio.nobody,mmio.w.4,msr.user,ioev.pio,ioev.rt.epoll,kick,mem.first.*,dirty.get.1",
    ];
    let (new, page) = (folder.path("new.json"), folder.path("new.html"));
    let files = ["--json", &new, "--html", &page];
    let end = exits(&[&few[..], &only[..], &files[..]].concat());
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{}", end.text());
    let report = folder.json("new.json");
    assert_eq!(report["schema"], "exits/1");
    let listed = exits(&[&["--list"][..], &only[..]].concat());
    for id in listed.text().lines().map(|line| line.split(' ').next().unwrap()) {
        let has = |list: &str| report[list].as_array().unwrap().iter().filter(|it| it["id"] == id).count();
        let (measured, skipped) = (has("results"), has("skipped"));
        assert!((measured > 0) != (skipped > 0), "{id}: {measured} rows, {skipped} skips");
    }
    let results = report["results"].as_array().unwrap();
    for row in results {
        let number = |field: &str| row[field].as_f64().unwrap();
        assert!(
            number("n") > 0.0 && number("min") <= number("p50") && number("p50") <= number("max"),
            "{row}"
        );
        assert_eq!(row["blocks"].as_array().unwrap().len(), 3, "{row}");
    }
    let of =
        |id: &str, path: &str| results.iter().find(|row| row["id"] == id && row["path"] == path).unwrap();
    for path in ["raw", "vmm"] {
        let exits = of("pio.out.4", path)["exits_per_op"].as_f64();
        assert!(exits.is_none_or(|exits| (0.95..1.2).contains(&exits)), "{path}: {exits:?}");
    }
    assert!(report["derived"].as_array().unwrap().iter().any(|it| it["id"] == "mmio.w.4"));

    // The same run again, from its file: compared with itself nothing is slower.
    let again = exits(&["--from", &new, "--compare", &new, "--html", &folder.path("again.html")]);
    assert_eq!(again.status.code(), Some(0), "{}", again.stderr);
    assert!(again.text().starts_with(end.text()), "{}\n{}", end.text(), again.text());
    assert!(again.text().contains("no row has changed"), "{}", again.text());
    assert_eq!(folder.text("new.html"), folder.text("again.html"));
}

#[test]
fn a_slower_row_is_named_and_ends_with_1() {
    needs!(kvm());
    let folder = Folder::new();
    let (old, new) = (folder.path("old.json"), folder.path("new.json"));
    let end = exits(&["--only", "pio.out.1", "--time", "3ms", "--blocks", "3", "--json", &old]);
    assert_eq!(end.status.code(), Some(0), "{}", end.stderr);
    // What this machine took does not matter, and may differ by more from block to block than is certain.
    let took = |file: &str, p50: f64| {
        let mut report = folder.json("old.json");
        let row = &mut report["results"][1];
        assert_eq!(row["path"], "vmm");
        row["p50"] = p50.into();
        row["blocks"].as_array_mut().unwrap().iter_mut().for_each(|block| block["p50"] = p50.into());
        std::fs::write(file, report.to_string()).unwrap();
    };
    took(&new, 2000.0);
    took(&old, 1000.0);
    let end = exits(&["--from", &new, "--compare", &old]);
    assert_eq!(end.status.code(), Some(1), "{}", end.stderr);
    assert!(end.text().contains("REGRESSION pio.out.1 vmm total"), "{}", end.text());
}

#[test]
fn a_payload_as_an_image_prints_a_thousand_times_and_powers_off() {
    needs!(kvm());
    let folder = Folder::new();
    let image = folder.path("pio.elf");
    let written = exits(&["--only", "pio.in.4", "--payload", &image]);
    assert_eq!((written.status.code(), written.text()), (Some(0), ""), "{}", written.stderr);
    let end = Attempt::new().run(["run", "--kernel", &image]);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    let times: Vec<_> = end.text().lines().map(|line| u32::from_str_radix(line, 16).unwrap()).collect();
    assert_eq!(times.len(), 1000);
    assert!(times.iter().all(|time| *time > 0));
}
