//! Command line flags under A1111's names, the options table and its file. Uses no other room.
//!
//! Follows A1111 v1.10.1's flags and settings page. This is the only room that reads the environment.

mod api_keys;
mod environment;
mod flags;
mod options;
mod output_folders;
mod own_flags;
mod service_config;
mod settings;
mod start_config;
mod table;

pub use api_keys::ApiKey;
pub use environment::Environment;
pub use flags::{FlagError, Flags};
pub use options::Options;
pub use output_folders::OutputFolders;
pub use service_config::{QueueConfig, RequestLimits, WebhookConfig};
pub use settings::{Settings, SettingsError};
pub use start_config::{
    Binding, Command, Config, ConfigError, DynamicPromptsMode, Folders, Freeze, Halves,
    LoadStrategyFlag, PrecisionFlags, RuntimeConfig, ServerConfig, Tls,
};
pub use table::{OptionEntry, OptionKind, option_table};
