//! How sure a median is: bootstrap over blocks, as times within a block depend on each other and blocks do not.

/// Of the numbers that draw blocks.
pub const SEED: u64 = 1;
/// How many quantiles a block is reduced to. Odd, so that one is the median.
pub const QUANTILES: usize = 101;
/// How many times blocks are drawn.
const DRAWS: usize = if cfg!(test) { 500 } else { 10_000 };

/// Evenly spaced quantiles of `sorted` times, all of the times if they are few.
pub fn quantiles(sorted: &[u32]) -> Vec<u32> {
    if sorted.len() <= QUANTILES {
        return sorted.to_vec();
    }
    let at = |index: usize| sorted[(2 * index + 1) * sorted.len() / (2 * QUANTILES)];
    (0..QUANTILES).map(at).collect()
}

/// Numbers that are the same in every run (Marsaglia's xorshift64*).
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * bound as u64) >> 32) as usize
    }
}

/// The median of all blocks together.
fn pooled<'a>(blocks: impl Iterator<Item = &'a [u32]>, room: &mut Vec<u32>) -> f64 {
    room.clear();
    blocks.for_each(|block| room.extend(block));
    if room.is_empty() {
        return 0.0;
    }
    let middle = room.len() / 2;
    f64::from(*room.select_nth_unstable(middle).1)
}

/// The bounds within which 95 % of `values` lie.
fn interval(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let at = |part: f64| values[((values.len() - 1) as f64 * part).round() as usize];
    (at(0.025), at(0.975))
}

/// The 95 % confidence interval of the median of blocks, each given by its quantiles.
pub fn median_interval(blocks: &[&[u32]], random: &mut Random) -> (f64, f64) {
    let mut room = Vec::new();
    let mut draw = || {
        let picks = (0..blocks.len()).map(|_| blocks[random.below(blocks.len())]);
        pooled(picks, &mut room)
    };
    interval((0..DRAWS).map(|_| draw()).collect())
}

/// How much greater the median of `b` is than that of `a`, whose blocks were measured in pairs: its 95 % confidence
/// interval.
pub fn difference_interval(a: &[&[u32]], b: &[&[u32]], random: &mut Random) -> (f64, f64) {
    let len = a.len().min(b.len());
    let mut room = Vec::new();
    let mut draw = || {
        let picks: Vec<_> = (0..len).map(|_| random.below(len)).collect();
        let greater = pooled(picks.iter().map(|index| b[*index]), &mut room);
        greater - pooled(picks.iter().map(|index| a[*index]), &mut room)
    };
    interval((0..DRAWS).map(|_| draw()).collect())
}

/// The same of two runs that know nothing of each other, each given by its blocks' medians: of the difference of means.
pub fn unpaired_interval(a: &[f64], b: &[f64], random: &mut Random) -> (f64, f64) {
    let mut mean = |values: &[f64]| {
        let sum: f64 = (0..values.len()).map(|_| values[random.below(values.len())]).sum();
        sum / values.len() as f64
    };
    interval((0..DRAWS).map(|_| mean(b) - mean(a)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(medians: &[u32]) -> Vec<Vec<u32>> {
        medians.iter().map(|median| (0..500).map(|index| median - 250 + index).collect()).collect()
    }

    fn parts(blocks: &[Vec<u32>]) -> Vec<&[u32]> {
        blocks.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn quantiles_are_evenly_spaced_and_have_the_median_in_their_middle() {
        let sorted: Vec<u32> = (0..10_100).collect();
        let quantiles = quantiles(&sorted);
        assert_eq!(quantiles.len(), QUANTILES);
        assert_eq!((quantiles[0], quantiles[QUANTILES / 2], quantiles[100]), (50, 5050, 10_050));
        assert_eq!(super::quantiles(&[1, 2, 3]), [1, 2, 3]);
        assert!(super::quantiles(&[]).is_empty());
    }

    #[test]
    fn the_interval_of_blocks_that_agree_is_narrow_and_of_others_wide() {
        let mut random = Random::new(1);
        let calm = blocks(&[1000, 1001, 999, 1000, 1000, 1001, 999, 1000]);
        let (low, high) = median_interval(&parts(&calm), &mut random);
        assert!(low >= 995.0 && high <= 1005.0 && low <= high, "{low} {high}");
        let noisy = blocks(&[1000, 2000, 1500, 900, 3000, 1200, 1000, 1700]);
        let (low, high) = median_interval(&parts(&noisy), &mut random);
        assert!(low < 1200.0 && high > 1400.0, "{low} {high}");
    }

    #[test]
    fn drift_that_both_paths_share_does_not_widen_their_difference() {
        let raw = blocks(&[1000, 1500, 2000, 2500]);
        let vmm = blocks(&[1100, 1600, 2100, 2600]);
        let (low, high) = difference_interval(&parts(&raw), &parts(&vmm), &mut Random::new(1));
        assert!((90.0..=110.0).contains(&low) && (90.0..=110.0).contains(&high), "{low} {high}");
    }

    #[test]
    fn two_runs_that_differ_are_told_apart() {
        let (low, high) =
            unpaired_interval(&[100.0, 101.0, 99.0], &[120.0, 121.0, 119.0], &mut Random::new(1));
        assert!(low > 15.0 && high < 25.0, "{low} {high}");
        let (low, high) =
            unpaired_interval(&[100.0, 140.0, 80.0], &[120.0, 90.0, 100.0], &mut Random::new(1));
        assert!(low < 0.0 && high > 0.0, "{low} {high}");
    }

    #[test]
    fn draws_are_the_same_in_every_run() {
        let noisy = blocks(&[1000, 2000, 1500]);
        let once = median_interval(&parts(&noisy), &mut Random::new(7));
        assert_eq!(once, median_interval(&parts(&noisy), &mut Random::new(7)));
    }
}
