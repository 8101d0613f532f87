//! What is bound to a session on a GPU. Binding an input brings it to the device; an input that has the values of
//! the last call is left as it is. So a picture's conditioning and its networks go there once, and a step brings
//! the latent and the timestep alone. Outputs come back to the host, where the sampler works.

use std::collections::HashMap;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, Session};
use ort::value::DynValue;

use super::graph::Feed;

/// What takes inputs to a device; a fake in tests.
trait Device {
    fn bind(&mut self, name: &str, value: &DynValue) -> Result<(), ort::Error>;
    /// Forgets every input.
    fn clear(&mut self);
}

impl Device for IoBinding {
    fn bind(&mut self, name: &str, value: &DynValue) -> Result<(), ort::Error> {
        self.bind_input(name, value)
    }

    fn clear(&mut self) {
        self.clear_inputs();
    }
}

/// A session's binding with what was bound last.
pub(super) struct InputBinding {
    binding: IoBinding,
    host: MemoryInfo<'static>,
    held: HashMap<String, DynValue>,
}

impl InputBinding {
    pub(super) fn new(session: &Session) -> Result<Self, ort::Error> {
        Ok(Self {
            binding: session.create_binding()?,
            host: MemoryInfo::new(
                AllocationDevice::CPU,
                0,
                AllocatorType::Device,
                MemoryType::CPUOutput,
            )?,
            held: HashMap::new(),
        })
    }

    /// Binds what changed since the last call, and the wanted outputs to the host.
    pub(super) fn bind(
        &mut self,
        feeds: &[(&str, Feed<'_>)],
        wanted: &[&str],
    ) -> Result<(), ort::Error> {
        if let Err(error) = bind_changed(&mut self.binding, &mut self.held, feeds) {
            // Nothing is known of what the device has now.
            self.held.clear();
            self.binding.clear_inputs();
            return Err(error);
        }
        self.binding.synchronize_inputs()?;
        self.binding.clear_outputs();
        for name in wanted {
            self.binding.bind_output_to_device(*name, &self.host)?;
        }
        Ok(())
    }

    pub(super) fn bound(&self) -> &IoBinding {
        &self.binding
    }
}

/// Binds the feeds that are not bound with these values; how many they were.
fn bind_changed(
    device: &mut dyn Device,
    held: &mut HashMap<String, DynValue>,
    feeds: &[(&str, Feed<'_>)],
) -> Result<usize, ort::Error> {
    // An input that may be left out and is left out now must get its default back.
    if held
        .keys()
        .any(|known| feeds.iter().all(|(name, _)| name != known))
    {
        held.clear();
        device.clear();
    }
    let mut count = 0;
    for (name, feed) in feeds {
        if held.get(*name).is_some_and(|known| feed.equals(known)) {
            continue;
        }
        let value = feed.owned()?;
        device.bind(name, &value)?;
        held.insert((*name).to_owned(), value);
        count += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::super::{LibrarySearch, Runtime, RuntimeOptions, find_library};
    use super::*;

    #[derive(Default)]
    struct Fake {
        log: Vec<String>,
    }

    impl Device for Fake {
        fn bind(&mut self, name: &str, _: &DynValue) -> Result<(), ort::Error> {
            self.log.push(name.to_owned());
            Ok(())
        }

        fn clear(&mut self) {
            self.log.push("clear".to_owned());
        }
    }

    fn feed(value: f32) -> Feed<'static> {
        Feed::Float(ArrayD::from_elem(IxDyn(&[2, 3]), value).into())
    }

    #[test]
    fn an_input_that_stays_the_same_is_brought_to_the_device_once() {
        let search = LibrarySearch {
            explicit: std::env::var_os("ORT_DYLIB_PATH").map(Into::into),
            ..LibrarySearch::default()
        };
        Runtime::load(&find_library(&search).unwrap(), RuntimeOptions::default()).unwrap();
        let mut device = Fake::default();
        let mut held = HashMap::new();
        let mut step = |sample: f32, context: f32| {
            let feeds = [("sample", feed(sample)), ("context", feed(context))];
            bind_changed(&mut device, &mut held, &feeds).unwrap()
        };
        assert_eq!(step(1.0, 5.0), 2);
        assert_eq!(step(2.0, 5.0), 1);
        assert_eq!(step(2.0, 6.0), 1);
        assert_eq!(step(2.0, 6.0), 0);
        let feeds = [("sample", feed(2.0))];
        assert_eq!(bind_changed(&mut device, &mut held, &feeds).unwrap(), 1);
        assert_eq!(
            device.log,
            ["sample", "context", "sample", "context", "clear", "sample"]
        );
    }
}
