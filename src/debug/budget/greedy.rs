//! One offer for each item within a budget: from the smallest of each on, the step that lowers the cost most per bit.

use crate::quant::Format;

/// A matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// What it may be, by ascending bits; at least one.
    pub offers: Vec<Offer>,
    /// The offer that was measured.
    pub probe: usize,
    /// The relative squared error there.
    pub squared_error: f64,
}

/// A format for a matrix.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Offer {
    /// The format.
    pub format: Format,
    /// Bits of the whole matrix.
    pub bits: f64,
    /// Divergence, in nats.
    pub cost: f64,
}

/// The chosen offer of each item; their bits are at most `bits`, unless the smallest of each have more already.
pub fn choose(items: &[Item], bits: f64) -> Vec<usize> {
    let mut chosen: Vec<usize> = items.iter().map(cheapest_of_smallest).collect();
    let mut left = bits - items.iter().zip(&chosen).map(|(item, at)| item.offers[*at].bits).sum::<f64>();
    loop {
        let mut best: Option<(f64, usize, usize, f64)> = None;
        for (number, (item, at)) in items.iter().zip(&chosen).enumerate() {
            let now = item.offers[*at];
            for (to, offer) in item.offers.iter().enumerate().skip(at + 1) {
                let (more, gain) = (offer.bits - now.bits, now.cost - offer.cost);
                // Budgets are often a recipe's exact size, so rounding must not decide.
                if more > left + 1e-6 * bits.abs() || gain <= 0.0 {
                    continue;
                }
                let worth = if more > 0.0 { gain / more } else { f64::INFINITY };
                if best.is_none_or(|(most, ..)| worth > most) {
                    best = Some((worth, number, to, more));
                }
            }
        }
        let Some((_, number, to, more)) = best else { return chosen };
        chosen[number] = to;
        left -= more;
    }
}

/// Of the offers with the fewest bits the one with the least cost.
fn cheapest_of_smallest(item: &Item) -> usize {
    let least = item.offers.first().map_or(0.0, |offer| offer.bits);
    let same = item.offers.iter().enumerate().filter(|(_, offer)| offer.bits <= least);
    same.min_by(|a, b| a.1.cost.total_cmp(&b.1.cost)).map_or(0, |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(offers: &[(f64, f64)]) -> Item {
        let offers = offers.iter().map(|(bits, cost)| Offer { format: Format::F16, bits: *bits, cost: *cost }).collect();
        Item { offers, probe: 0, squared_error: 0.0 }
    }

    #[test]
    fn bits_go_where_they_lower_the_cost_most() {
        let items = [item(&[(2.0, 10.0), (4.0, 1.0), (8.0, 0.0)]), item(&[(2.0, 3.0), (4.0, 0.5)]), item(&[(2.0, 0.0), (4.0, 0.0)])];
        assert_eq!(choose(&items, 0.0), [0, 0, 0]);
        assert_eq!(choose(&items, 8.0), [1, 0, 0]);
        assert_eq!(choose(&items, 10.0), [1, 1, 0]);
        // What is left is spent on what still gains, and never on what does not.
        assert_eq!(choose(&items, 14.0), [2, 1, 0]);
        assert_eq!(choose(&items, 99.0), [2, 1, 0]);
        // A step that does not fit is passed over for one that does.
        let wide = [item(&[(2.0, 100.0), (50.0, 0.0)]), item(&[(2.0, 1.0), (3.0, 0.5)])];
        assert_eq!(choose(&wide, 10.0), [0, 1]);
        // More bits for a higher cost are no offer; of two of one size the better is taken.
        assert_eq!(choose(&[item(&[(2.0, 5.0), (2.0, 4.0), (3.0, 6.0)])], 10.0), [1]);
    }
}
