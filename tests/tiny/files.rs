//! Guest memory as the host sees it, and the files that it is loaded from while the guest runs.

use std::fs;

use crate::process::Kite;
use crate::support::{guarded, kvm};

guest!(
    FAR_PAGE,
    // Code, then more pages than it takes for kite to map them, and a word on the last, which the guest looks at late.
    say!("'>'"),
    "mov dx, 0x3fd
     2: in al, dx
     test al, 1
     jz 2b
     cld
     mov esi, 0x140000
     mov ecx, 5
     mov dx, 0x3f8
     rep outsb",
    power_off!(),
    ".org .Lstart_FAR_PAGE + 0x40000, 0
     .ascii \"asis\\n\"
     .org .Lstart_FAR_PAGE + 0x41000, 0"
);

#[test]
fn who_changes_a_kernel_file_need_not_wait_and_the_guest_does_not_see_it() {
    needs!(kvm());
    let mut kite = Kite::typed_to(&FAR_PAGE, &[]);
    kite.expect(b">");
    let path = kite.image().to_owned();
    // The writer waits until kite lets it in. Left to itself, the host would do that much later, with no copy made.
    guarded(move || fs::write(&path, vec![b'X'; 0x42000]).unwrap());
    kite.send(b"go");
    kite.end().assert(0, b">asis\n", "");
}

guest!(SAYS, say!("'!'"), "2: sti\n hlt\n jmp 2b");

#[test]
fn host_and_guest_addresses_agree_within_a_huge_page() {
    const HUGE_PAGE: u64 = 2 << 20;
    needs!(kvm());
    let mut kite = Kite::run(&SAYS, &[]);
    kite.expect(b"!");
    let maps = fs::read_to_string(format!("/proc/{}/maps", kite.id())).unwrap();
    let mut ranges = maps.lines().filter_map(|line| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
    });
    // The first MiB of the guest's RAM is advised otherwise than the rest.
    let (start, _) = ranges.find(|(start, end)| end - start == 1 << 20).unwrap();
    assert_eq!(start % HUGE_PAGE, 0, "{maps}");
}
