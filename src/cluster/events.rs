//! Events on the user's objects. They tell what needs attention; a certificate that was issued or
//! renewed in time makes none, since at scale each would cost as much as the certificate.

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tracing::debug;

/// Publishes events under the name of one controller.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

/// An event's note holds at most 1,024 bytes.
const NOTE_LIMIT: usize = 1024;

impl Events {
    /// For the controller of this name.
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        let controller = format!("countersign.dev/{controller}");
        Self { recorder: Recorder::new(client, Reporter { controller, instance }) }
    }

    /// Something that the user asked for was done.
    pub async fn normal<K>(&self, object: &K, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Normal, action, reason, note).await;
    }

    /// Something needs the user's attention.
    pub async fn warning<K>(&self, object: &K, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.publish(object, EventType::Warning, action, reason, note).await;
    }

    async fn publish<K>(&self, object: &K, type_: EventType, action: &str, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let note = note[..note.floor_char_boundary(NOTE_LIMIT)].to_owned();
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        // An event that is lost costs nothing: the condition says the same.
        if let Err(error) = self.recorder.publish(&event, &object.object_ref(&())).await {
            debug!(%error, reason, "event was not published");
        }
    }
}
