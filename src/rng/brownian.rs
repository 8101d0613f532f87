//! Brownian motion as torchsde's `BrownianTree` samples it, for the SDE samplers of k-diffusion:
//! the same path for the same seed, whatever points are asked for.
//!
//! The interval between two sigmas is halved down to a grid of 1e-6; every halving draws one
//! Gaussian tensor from a generator seeded by the node's place in the tree (numpy's `SeedSequence`
//! with a pool of 24 words). Random entropy for a whole batch
//! (`no_dpmpp_sde_batch_determinism`) is the caller's choice of seeds.

use std::collections::HashMap;

use ndarray::{Array3, Array4, Axis};

use super::generator::{Generator, NoiseGenerator};
use super::seed_sequence::seed_sequence;

/// Place of a node: the path from the root as a number, and its length.
type NodeId = (u64, u32);

/// Increments of the left half of a node, with the query that last used it.
struct CachedNode {
    left: Array3<f32>,
    last_query: u64,
}

/// One Brownian path over the sigmas of a schedule.
pub struct BrownianTree {
    generator: NoiseGenerator,
    shape: (usize, usize, usize),
    entropy: u64,
    start: f64,
    end: f64,
    root: Array3<f32>,
    nodes: HashMap<NodeId, CachedNode>,
    query: u64,
}

/// A node on the way down: its interval and the path's increment over it.
#[derive(Clone)]
struct Node {
    start: f64,
    end: f64,
    increment: Array3<f32>,
    id: NodeId,
}

impl BrownianTree {
    /// A path over `[sigma_min, sigma_max]` for latents of `shape` (channels, h, w); the same
    /// `seed` gives the same path.
    #[must_use]
    pub fn new(
        generator: NoiseGenerator,
        shape: (usize, usize, usize),
        sigma_min: f32,
        sigma_max: f32,
        seed: i64,
    ) -> Self {
        let (t0, t1) = (f64::from(sigma_min), f64::from(sigma_max));
        let entropy = seed as u64;
        let root_seed = seed_sequence(entropy, &[], 3)[0];
        let scale = (t1 - t0).sqrt() as f32;
        let root = normal(generator, root_seed, shape) * scale;
        Self {
            generator,
            shape,
            entropy,
            start: round_micro(t0),
            end: round_micro(t1),
            root,
            nodes: HashMap::new(),
            query: 0,
        }
    }

    /// `B(to) - B(from)` for `from` ≤ `to`, both moved to the tree's interval and grid.
    pub fn increment(&mut self, from: f32, to: f32) -> Array3<f32> {
        self.query += 1;
        let from = self.on_grid(from);
        let to = self.on_grid(to);
        let mut sum: Option<Array3<f32>> = None;
        if from < to {
            let root = Node {
                start: self.start,
                end: self.end,
                increment: self.root.clone(),
                id: (0, 0),
            };
            self.add_pieces(root, from, to, &mut sum);
        }
        let query = self.query;
        // Neighbouring queries share an end point; older nodes are cheap to draw again.
        self.nodes.retain(|_, node| node.last_query + 1 >= query);
        sum.unwrap_or_else(|| Array3::zeros(self.shape))
    }

    /// Adds the increments of the largest nodes that make up `[from, to]`, left to right.
    fn add_pieces(&mut self, node: Node, from: f64, to: f64, sum: &mut Option<Array3<f32>>) {
        if from <= node.start && to >= node.end {
            match sum {
                None => *sum = Some(node.increment),
                Some(sum) => *sum += &node.increment,
            }
            return;
        }
        let (left, right) = self.halves(&node);
        if from < left.end {
            let end = to.min(left.end);
            self.add_pieces(left, from, end, sum);
        }
        if to > right.start {
            let start = from.max(right.start);
            self.add_pieces(right, start, to, sum);
        }
    }

    /// The Brownian bridge at the middle of a node.
    fn halves(&mut self, node: &Node) -> (Node, Node) {
        let middle = round_micro(f64::midpoint(node.start, node.end));
        let left_len = middle - node.start;
        let right_len = node.end - middle;
        let len = node.end - node.start;
        let (key, depth) = node.id;
        let query = self.query;
        let left = if let Some(cached) = self.nodes.get_mut(&node.id) {
            cached.last_query = query;
            cached.left.clone()
        } else {
            let seed = seed_sequence(self.entropy, &[key, u64::from(depth)], 4)[0];
            let mut left = normal(self.generator, seed, self.shape);
            let (left_part, reciprocal) = (left_len as f32, (1.0 / len) as f32);
            let deviation = (left_len * right_len * (1.0 / len)).sqrt() as f32;
            ndarray::Zip::from(&mut left)
                .and(&node.increment)
                .for_each(|x, &w| *x = left_part * w * reciprocal + deviation * *x);
            let cached = CachedNode {
                left: left.clone(),
                last_query: query,
            };
            self.nodes.insert(node.id, cached);
            left
        };
        let right = &node.increment - &left;
        (
            Node {
                start: node.start,
                end: middle,
                increment: left,
                id: (2 * key, depth + 1),
            },
            Node {
                start: middle,
                end: node.end,
                increment: right,
                id: (2 * key + 1, depth + 1),
            },
        )
    }

    fn on_grid(&self, t: f32) -> f64 {
        round_micro(f64::from(t).clamp(self.start, self.end))
    }
}

/// Unit-variance noise between two sigmas for a batch, one Brownian path a picture.
pub struct BrownianNoise {
    trees: Vec<BrownianTree>,
}

impl BrownianNoise {
    /// One path a seed over the whole schedule: `sigma_min` is its smallest positive sigma,
    /// `sigma_max` its largest. `shape` is that of one latent (channels, h, w).
    #[must_use]
    pub fn new(
        generator: NoiseGenerator,
        shape: (usize, usize, usize),
        sigma_min: f32,
        sigma_max: f32,
        seeds: &[i64],
    ) -> Self {
        let trees = seeds
            .iter()
            .map(|&seed| BrownianTree::new(generator, shape, sigma_min, sigma_max, seed))
            .collect();
        Self { trees }
    }

    /// The noise of a step from `sigma` down to `sigma_next`, `[batch, channels, h, w]`.
    ///
    /// # Panics
    /// Never: the trees of a batch have one shape.
    pub fn between(&mut self, sigma: f32, sigma_next: f32) -> Array4<f32> {
        let (low, high) = if sigma < sigma_next {
            (sigma, sigma_next)
        } else {
            (sigma_next, sigma)
        };
        let sign = if sigma < sigma_next { 1.0 } else { -1.0 };
        let scale = (sigma_next - sigma).abs().sqrt();
        let increments: Vec<Array3<f32>> = self
            .trees
            .iter_mut()
            .map(|tree| tree.increment(low, high).mapv(|w| w * sign / scale))
            .collect();
        let views: Vec<_> = increments
            .iter()
            .map(|increment| increment.view())
            .collect();
        ndarray::stack(Axis(0), &views).expect("all trees of a batch have one shape")
    }
}

fn normal(kind: NoiseGenerator, seed: u32, shape: (usize, usize, usize)) -> Array3<f32> {
    let values = Generator::new(kind, i64::from(seed)).normal(shape.0 * shape.1 * shape.2);
    Array3::from_shape_vec(shape, values).expect("as many values as the shape holds")
}

/// Python's `round(t, 6)`: decimal rounding of the exact binary value.
fn round_micro(t: f64) -> f64 {
    format!("{t:.6}")
        .parse()
        .expect("a formatted number parses")
}
