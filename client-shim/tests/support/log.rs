//! Log lines of the current thread, as values.
//!
//! In: what runs on a current-thread runtime while a [`Log`] lives. Out: JSON events. Not here: other threads' events.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tracing::subscriber::DefaultGuard;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub struct Log {
    buffer: Buffer,
    _guard: DefaultGuard,
}

impl Log {
    pub fn capture() -> Self {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            buffer,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    /// The reasons of all declines since the last call, in order.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn declines(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.buffer.0.lock().unwrap());
        let declined = |e: &Value| Some(e.get("lazy_declined")?.as_str().unwrap().to_owned());
        parsed(&text).iter().filter_map(declined).collect()
    }

    /// All lines with this message.
    #[allow(dead_code, reason = "each test binary uses its part")]
    pub fn events(&self, message: &str) -> Vec<Value> {
        let events = parsed(&self.buffer.0.lock().unwrap());
        events.into_iter().filter(|e| e["message"] == message).collect()
    }
}

fn parsed(text: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
