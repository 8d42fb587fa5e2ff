//! What the bridge reports about itself: metrics ([`metrics`]) and logs ([`logs`]).

pub mod logs;
pub mod metrics;
mod throttle;

pub use throttle::LogThrottle;
