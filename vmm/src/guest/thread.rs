//! The guest's thread: wait, answer, until the guest has ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventManager, SubscriberId, SubscriberOps};
use xen::DomId;

use super::config::DeviceKey;
use super::error::GuestError;
use super::event::{GuestEvent, Outbox};
use super::service::Service;
use super::stats::GuestStats;

/// What the thread is given besides its loop.
pub(super) struct Context {
    pub domid: DomId,
    pub outbox: Outbox,
    /// Takes the counters when the guest ends.
    pub last: Arc<Mutex<GuestStats>>,
    pub span: tracing::Span,
}

/// Serves until the guest has ended; gives the devices that did not stop.
pub(super) fn run(
    manager: EventManager<Service>,
    id: SubscriberId,
    context: &Context,
) -> Vec<DeviceKey> {
    let _entered = context.span.enter();
    // whatever happens, the service is dropped, and with it the ioreq server,
    // which answers those who wait
    let ended = catch_unwind(AssertUnwindSafe(|| serve(manager, id, context)));
    ended.unwrap_or_else(|panic| {
        let message = message(&*panic);
        tracing::error!(
            message,
            "the guest's thread failed; it is not served any more"
        );
        context.outbox.post(GuestEvent::Failed(GuestError::Panic {
            domid: context.domid,
            context: "serving it".into(),
            message,
        }));
        Vec::new()
    })
}

fn serve(
    mut manager: EventManager<Service>,
    id: SubscriberId,
    context: &Context,
) -> Vec<DeviceKey> {
    while let Ok(service) = manager.subscriber_mut(id) {
        if !service.turn() {
            break;
        }
        if let Some(pause) = service.pause() {
            std::thread::sleep(pause);
        }
        let patience = service.patience();
        if let Err(error) = manager.run_with_timeout(patience) {
            tracing::error!(%error, "the guest's thread cannot wait; its guest ends");
            context.outbox.post(GuestEvent::Failed(GuestError::Host {
                domid: context.domid,
                what: "its thread cannot wait for events",
                source: std::io::Error::other(error),
            }));
            break;
        }
    }
    let Ok(service) = manager.remove_subscriber(id) else {
        return Vec::new();
    };
    *context.last.lock().unwrap_or_else(PoisonError::into_inner) = service.stats();
    let stuck = service.finish();
    tracing::info!("the guest is not served any more");
    stuck
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into())
}
