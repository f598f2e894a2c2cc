//! What the control thread asks of a shard: another configuration, what a health check has found.

use super::Shard;
use super::mailbox::Order;
use crate::ring::Ring;
use crate::upstream::UpstreamName;

impl<R: Ring> Shard<R> {
    pub(super) fn on_order(&mut self, order: Order) {
        match order {
            Order::Config(config) => self.on_config(config),
            Order::Checked { backend, upstream, ok } => self.on_checked(backend, upstream, ok),
        }
    }

    /// A health check of an upstream has ended.
    fn on_checked(&mut self, backend: u16, upstream: UpstreamName, ok: bool) {
        // Either may have left the configuration since the check began.
        let Some(Some(group)) = self.groups.get_mut(usize::from(backend)) else { return };
        let Some(id) = group.find(upstream) else { return };
        if group.on_check_result(id, ok, self.now).is_some() {
            self.room_made = true;
        }
    }

    /// Goes by another configuration from here on.
    fn on_config(&mut self, config: std::sync::Arc<crate::config::Config>) {
        self.config = config;
    }
}
