//! What bounds the server: its queue, the jobs that it keeps, and what a request may ask for.

use super::start_config::{ConfigError, number};
use super::{Environment, Flags};

/// The queue and the kept jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueConfig {
    /// How many requests may wait.
    pub waiting: usize,
    /// How many of them may belong to one client; `None`: as many as may wait.
    pub waiting_per_client: Option<usize>,
    /// How many jobs run at once; `None`: what suits the hardware.
    pub concurrent: Option<usize>,
    /// A caller who leaves interrupts the running job.
    pub cancel_on_disconnect: bool,
    /// Seconds that the result of a job submitted to `/v1/jobs` is kept.
    pub keep_results_s: u64,
    /// Seconds that running jobs get to end when the server stops.
    pub drain_s: Option<u64>,
}

/// Who is told of the end of jobs, and what signs the message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WebhookConfig {
    /// Origins such as `https://example.org`; empty: no webhooks.
    pub origins: Vec<String>,
    /// The key of the HMAC-SHA256 signature.
    pub secret: String,
}

/// What one request may ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestLimits {
    pub body_bytes: usize,
    /// Width times height of a picture that is drawn.
    pub pixels: u64,
    pub steps: i64,
    /// `batch_size` times `n_iter`.
    pub pictures: i64,
    /// Characters of a prompt.
    pub prompt_characters: usize,
    /// Width times height of a picture that is read.
    pub input_pixels: u64,
    /// Open connections; more wait.
    pub connections: usize,
    /// Seconds that a client may take to send the head of a request.
    pub head_timeout_s: u64,
    /// Seconds that a client may pause while it sends a body.
    pub body_timeout_s: u64,
}

const MIB: usize = 1 << 20;
const MEGAPIXEL: u64 = 1_000_000;

impl QueueConfig {
    pub(super) fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        Ok(Self {
            waiting: number(flags, "queue-size")?.unwrap_or(256),
            waiting_per_client: number(flags, "queue-size-per-client")?,
            concurrent: number(flags, "max-concurrent-jobs")?,
            cancel_on_disconnect: flags.given("cancel-on-disconnect"),
            keep_results_s: number(flags, "keep-results")?.unwrap_or(3600),
            drain_s: number(flags, "drain-timeout")?,
        })
    }
}

impl WebhookConfig {
    pub(super) fn from_flags(flags: &Flags, environment: &Environment) -> Self {
        let origins = flags.value("webhook-origins").unwrap_or("");
        Self {
            origins: origins
                .split(',')
                .map(|origin| origin.trim().trim_end_matches('/').to_owned())
                .filter(|origin| !origin.is_empty())
                .collect(),
            secret: environment.webhook_secret.clone(),
        }
    }
}

impl RequestLimits {
    pub(super) fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        let mib: Option<usize> = number(flags, "max-body-size")?;
        let megapixels: Option<u64> = number(flags, "max-megapixels")?;
        let input_megapixels: Option<u64> = number(flags, "max-input-megapixels")?;
        Ok(Self {
            body_bytes: mib.unwrap_or(256).saturating_mul(MIB),
            pixels: megapixels.unwrap_or(64).saturating_mul(MEGAPIXEL),
            steps: number(flags, "max-steps")?.unwrap_or(1000),
            pictures: number(flags, "max-pictures")?.unwrap_or(1000),
            prompt_characters: number(flags, "max-prompt-length")?.unwrap_or(100_000),
            input_pixels: input_megapixels.unwrap_or(178).saturating_mul(MEGAPIXEL),
            connections: number(flags, "max-connections")?.unwrap_or(1024),
            head_timeout_s: number(flags, "head-timeout")?.unwrap_or(30),
            body_timeout_s: number(flags, "body-timeout")?.unwrap_or(60),
        })
    }
}
