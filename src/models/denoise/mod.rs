//! One denoise service per loaded UNet: it owns the session, and the calls of all jobs that use it
//! meet here, step by step.
//!
//! A sampler is a plain loop over calls of its UNet. Calls that agree in everything but their rows
//! (shapes of latent and conditioning, networks, share of merged tokens) may be one run of the graph;
//! jobs join and leave between steps, whatever their prompts, seeds, scales, samplers and step counts
//! are. The rows of one call stay together and in their order. The oldest waiting call is always in
//! the next run.
//!
//! A picture does not depend on who shared its runs. On the CPU provider that holds to the bit: the
//! first shared run of a composition is thrown away, its calls are carried out alone and compared, and
//! the verdict decides whether that composition is ever shared. What fails together is carried out
//! alone, so that one job's fault does not reach another; a withdrawn call takes nothing from those
//! that share its run.

mod desk;
mod service;
#[cfg(test)]
mod tests;

pub(super) use service::{Backend, DenoiseService, Seat, Setting, Sharing, SharingRule};
