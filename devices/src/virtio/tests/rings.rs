//! Rings whose indices and entries are not what a driver writes (virtio 1.2 §2.7.6 and §2.7.8).

use super::{assert_needs_reset, attack};
use crate::virtio::testing::{BUFFERS, Driver, UP, WRITE};

/// The queue size of a driver that asks for no other.
const SIZE: u16 = 64;

#[test]
fn an_avail_index_that_jumps_needs_a_reset_once() {
    for jump in [SIZE + 1, SIZE * 2, 0x8000, 0xfffe, u16::MAX] {
        attack("avail.idx jumps", |driver| {
            driver.set_avail(0, jump);
            driver.kick(0);
            assert_needs_reset(driver, &format!("{jump:#x}"));
            driver.interrupts();
            for _ in 0..100 {
                driver.kick(0);
            }
            assert_eq!(driver.interrupts(), 0, "{jump:#x}");
        });
    }
}

#[test]
fn an_avail_index_that_goes_back_needs_a_reset() {
    attack("avail.idx goes back", |driver| {
        for _ in 0..3 {
            driver.add(0, &[(BUFFERS, 4, true)]);
        }
        driver.kick(0);
        driver.serve_sources();
        assert_eq!(driver.used(0).len(), 3);
        driver.set_avail(0, 2);
        driver.kick(0);
        assert_needs_reset(driver, "backwards");
    });
}

#[test]
fn indices_wrap_around() {
    attack("indices wrap", |driver| {
        for round in 0..u32::from(u16::MAX) / 32 + 8 {
            let heads: Vec<u16> = (0..32).map(|_| driver.add(0, &[(BUFFERS, 1, true)])).collect();
            driver.kick(0);
            driver.serve_sources();
            let mut used: Vec<u16> = driver.used(0).iter().map(|(head, _)| *head).collect();
            used.sort_unstable();
            assert_eq!(used, heads, "round {round}");
        }
        // Right behind the wrap it jumps.
        let at = driver.used_index(0);
        driver.set_avail(0, at.wrapping_add(SIZE + 1));
        driver.kick(0);
        assert_needs_reset(driver, "behind the wrap");
    });
}

#[test]
fn a_head_that_is_no_descriptor_needs_a_reset() {
    for head in [SIZE, SIZE + 1, 0xff, 0x100, 0x7fff, 0x8000, u16::MAX] {
        attack("head", |driver| {
            driver.offer(0, head);
            driver.kick(0);
            assert_needs_reset(driver, &format!("{head}"));
            assert_eq!(driver.used(0), []);
        });
    }
}

/// Offers descriptor 0 `times`, and tells how often it came back before the source was looked at, and after.
fn offer_one(driver: &mut Driver, times: u16) -> [usize; 2] {
    driver.descriptor(0, 0, (BUFFERS, 4, WRITE, 0));
    (0..times).for_each(|_| driver.offer(0, 0));
    driver.kick(0);
    let at_once = driver.used(0).len();
    driver.serve_sources();
    [at_once, driver.used(0).len()]
}

#[test]
fn a_head_that_is_in_flight_is_not_taken_again() {
    attack("one head in all entries", |driver| {
        let [at_once, later] = offer_one(driver, SIZE);
        match at_once {
            // Not in flight any more when it comes again.
            64 => assert_eq!((driver.status(), later), (UP, 0)),
            0 => {
                assert_eq!(later, 0, "completed though the device needs a reset");
                assert_needs_reset(driver, "in flight");
            }
            other => panic!("{other} of 64 came back"),
        }
    });
    attack("one head again after it came back", |driver| {
        for _ in 0..3 {
            assert_eq!(offer_one(driver, 1).iter().sum::<usize>(), 1);
        }
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn the_last_free_head_in_flight_leaves_the_others_alone() {
    // A queue full of distinct heads, then one of them again, in a service of its own.
    attack("a full ring", |driver| {
        let heads: Vec<u16> = (0..SIZE).map(|_| driver.add(0, &[(BUFFERS, 4, true)])).collect();
        driver.kick(0);
        let held = driver.used(0).is_empty();
        driver.offer(0, heads[5]);
        driver.kick(0);
        if held {
            assert_needs_reset(driver, "again");
        } else {
            assert_eq!(driver.used(0).len(), 1);
        }
    });
}

#[test]
fn kicks_for_nothing_cost_nothing() {
    attack("100,000 kicks", |driver| {
        for _ in 0..100_000 {
            driver.kick(0);
        }
        assert_eq!((driver.status(), driver.interrupts(), driver.used_index(0)), (UP, 0, 0));
    });
}
