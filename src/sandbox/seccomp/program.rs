//! A filter as the kernel runs it: a program of classic BPF (seccomp(2)).
//!
//! The call's number is found by halving ranges. The kernel runs a filter for every number when it is installed, to know
//! those that it need not run it for any more, and turns it into machine code: a list of comparisons costs it twice as long.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What an argument of a call must be: this in the bits of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument it is, counted from 0; of its 64 bits the lower half is looked at.
    pub argument: u8,
    pub mask: u32,
    pub value: u32,
}

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allow,
    /// It is allowed if one of the conditions holds.
    AllowIf(Vec<Condition>),
    /// It is answered as by a kernel that has no such call.
    Missing,
    /// It is reported, and ends the process.
    Refuse,
}

/// The program that answers each call, by its number, with its verdict. Any other is refused, and so are all calls by
/// another architecture's numbers.
pub(super) fn of(calls: BTreeMap<u32, Verdict>) -> BpfProgram {
    let mut code = Backwards::default();
    let refuse = code.end(libc::SECCOMP_RET_TRAP);
    let allow = code.end(libc::SECCOMP_RET_ALLOW);
    let missing = code.end(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    let mut places: Vec<(Verdict, Place)> =
        vec![(Verdict::Refuse, refuse), (Verdict::Allow, allow), (Verdict::Missing, missing)];
    let mut answers = Vec::new();
    for (first, verdict) in ranges(calls) {
        let known = places.iter().find_map(|(known, place)| (*known == verdict).then_some(*place));
        let place = known.unwrap_or_else(|| match &verdict {
            Verdict::AllowIf(ways) => code.one_of(ways, allow, refuse),
            _ => unreachable!("the others have their places"),
        });
        if known.is_none() {
            places.push((verdict, place));
        }
        answers.push((first, place));
    }
    let search = code.find(&answers);
    let number = code.before(search, LOAD, NUMBER);
    let ours = code.jump(IF_EQUAL, AUDIT_ARCH_X86_64, number, refuse);
    code.before(ours, LOAD, ARCHITECTURE);
    code.forwards()
}

/// The first number of each range of calls with one verdict, from 0 to the last number that there can be.
fn ranges(calls: BTreeMap<u32, Verdict>) -> Vec<(u32, Verdict)> {
    let mut ranges = vec![(0, Verdict::Refuse)];
    let mut begin = |first: u32, verdict: Verdict| {
        ranges.pop_if(|last| last.0 == first);
        if ranges.last().is_none_or(|last| last.1 != verdict) {
            ranges.push((first, verdict));
        }
    };
    for (number, verdict) in calls {
        begin(number, verdict);
        begin(number + 1, Verdict::Refuse);
    }
    ranges
}

/// `program` with one call in front: `number` with `request` as its second argument is let through before anything else
/// is looked at.
pub(super) fn with_quick_entry(program: &[sock_filter], number: u32, request: u32) -> BpfProgram {
    let skip = |k, jt, jf| sock_filter { code: IF_EQUAL, jt, jf, k };
    let quick = [
        instruction(LOAD, ARCHITECTURE),
        skip(AUDIT_ARCH_X86_64, 0, 5),
        instruction(LOAD, NUMBER),
        skip(number, 0, 3),
        instruction(LOAD, argument(1)),
        skip(request, 0, 1),
        instruction(RETURN, libc::SECCOMP_RET_ALLOW),
    ];
    [&quick[..], program].concat()
}

/// An instruction's place, counted from the program's end.
type Place = usize;

/// A program that is written from its end to its start, as jumps only lead forwards.
#[derive(Default)]
struct Backwards(Vec<sock_filter>);

/// A condition leads no further than 256 instructions on, with one more put between.
const REACH: usize = 254;

impl Backwards {
    fn put(&mut self, instruction: sock_filter) -> Place {
        self.0.push(instruction);
        self.0.len() - 1
    }

    /// How many instructions are skipped from one that is put now to `place`.
    fn distance(&self, place: Place) -> usize {
        self.0.len() - 1 - place
    }

    /// Answers.
    fn end(&mut self, answer: u32) -> Place {
        self.put(instruction(RETURN, answer))
    }

    /// A way to `place` that a condition can lead to.
    fn near(&mut self, place: Place) -> Place {
        match self.distance(place) {
            ..REACH => place,
            distance => self.put(instruction(JUMP, distance as u32)),
        }
    }

    /// Goes on at `yes` or `no`, by comparing what was looked at with `k`.
    fn jump(&mut self, code: u16, k: u32, yes: Place, no: Place) -> Place {
        let (yes, no) = (self.near(yes), self.near(no));
        let [jt, jf] = [yes, no].map(|place| self.distance(place) as u8);
        self.put(sock_filter { code, jt, jf, k })
    }

    /// Does one thing, and goes on at `then`.
    fn before(&mut self, then: Place, code: u16, k: u32) -> Place {
        if self.distance(then) > 0 {
            self.put(instruction(JUMP, self.distance(then) as u32));
        }
        self.put(instruction(code, k))
    }

    /// Goes on at `yes` if one of the conditions holds, and else at `no`.
    fn one_of(&mut self, ways: &[Condition], yes: Place, no: Place) -> Place {
        let alike = |a: &Condition, b: &Condition| (a.argument, a.mask) == (b.argument, b.mask);
        let mut next = no;
        for ways in ways.chunk_by(alike).rev() {
            for way in ways.iter().rev() {
                next = self.jump(IF_EQUAL, way.value, yes, next);
            }
            if ways[0].mask != u32::MAX {
                next = self.before(next, AND, ways[0].mask);
            }
            next = self.before(next, LOAD, argument(ways[0].argument));
        }
        next
    }

    /// Goes on where the range leads that what was looked at is in, of some in order, each with its first number.
    fn find(&mut self, ranges: &[(u32, Place)]) -> Place {
        if let [(_, place)] = ranges {
            return *place;
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (above, below) = (self.find(high), self.find(low));
        self.jump(IF_AT_LEAST, high[0].0, above, below)
    }

    fn forwards(mut self) -> BpfProgram {
        self.0.reverse();
        self.0
    }
}

fn instruction(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

// Linux `include/uapi/linux/bpf_common.h`.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where there is in `struct seccomp_data` the call's number.
const NUMBER: u32 = 0;
/// The architecture.
const ARCHITECTURE: u32 = 4;

/// The lower half of an argument.
fn argument(index: u8) -> u32 {
    16 + 8 * u32::from(index)
}

/// Linux `include/uapi/linux/audit.h`.
pub(super) const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What the kernel does with a call, of that architecture, that `program` answers.
    pub fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut looked_at) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let skipped = |holds| usize::from(if holds { jt } else { jf });
            match code {
                LOAD => {
                    looked_at = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        _ => (arguments[(k as usize - 16) / 8] >> (8 * (k % 8))) as u32,
                    };
                }
                AND => looked_at &= k,
                JUMP => at += k as usize,
                IF_EQUAL => at += skipped(looked_at == k),
                IF_AT_LEAST => at += skipped(looked_at >= k),
                RETURN => return k,
                _ => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn a_long_program_finds_every_call() {
        let condition = |value| Condition { argument: 2, mask: 0xff, value };
        let verdict = |number: u32| match number % 4 {
            1 => Verdict::Allow,
            2 => Verdict::AllowIf(vec![condition(number % 200), condition(201)]),
            3 => Verdict::Missing,
            _ => Verdict::Refuse,
        };
        let program = of((0..800).map(|number| (number, verdict(number))).collect());
        assert!(program.len() > 1000);
        for number in (0..900).chain([u32::MAX]) {
            let answer = |third| run(&program, AUDIT_ARCH_X86_64, number, [7, 7, third, 7, 7, 7]);
            let expected = match verdict(number) {
                _ if number >= 800 => [libc::SECCOMP_RET_TRAP; 3],
                Verdict::Allow => [libc::SECCOMP_RET_ALLOW; 3],
                Verdict::AllowIf(_) => {
                    [libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_TRAP]
                }
                Verdict::Missing => [libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32; 3],
                Verdict::Refuse => [libc::SECCOMP_RET_TRAP; 3],
            };
            let answers = [u64::from(number % 200) | 0xabcd_0000_0000_0100, 201, 202].map(answer);
            assert_eq!(answers, expected, "{number}");
        }
    }
}
