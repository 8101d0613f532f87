//! Pictures of an answer, encoded beside the job: one that is finished is begun while the next are drawn, and what is
//! left at the end is shared among the cores.

use std::collections::VecDeque;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::answer::encode_picture;
use super::{ApiError, Resolved};
use crate::config::Options;
use crate::pipeline::{GeneratedImage, Picture, PictureListener};

/// Threads of one job that encode while it draws; they take from the cores that draw.
const MOST_HELPERS: usize = 4;

type Encode = fn(&Picture, &[(&str, &str)], &Options) -> Result<String, ApiError>;

/// Encodes pictures from the moment they are finished, on threads of its own.
#[derive(Debug)]
pub struct EarlyEncoder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: Options,
    with_text: bool,
    encode: Encode,
    helpers: usize,
    state: Mutex<State>,
    helper_left: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Key>,
    running: Vec<Key>,
    done: Vec<(Key, String)>,
    helpers: usize,
}

/// A picture by its identity, and the text in its file. Whoever has it does not keep the pixels.
#[derive(Debug, Clone)]
struct Key {
    picture: Weak<Picture>,
    text: Option<String>,
}

impl Key {
    fn is(&self, image: &GeneratedImage, text: Option<&str>) -> bool {
        // The address stays taken as long as there is a weak pointer to it.
        self.picture.as_ptr() == Arc::as_ptr(&image.image) && self.text.as_deref() == text
    }
}

impl EarlyEncoder {
    /// Has the job's pictures encoded while it goes on; `None` where no more than one is answered as it is drawn.
    #[must_use]
    pub fn of_job(resolved: &mut Resolved, encoding: &Options) -> Option<Arc<Self>> {
        let params = &mut resolved.params;
        let many = match &resolved.script {
            None => params.batch_size * params.batch_count > 1,
            Some(call) => call.script.answers_generations(&call.arguments),
        };
        if !many || !resolved.body.bool("send_images") {
            return None;
        }
        let early = Arc::new(Self::new(&params.options, encoding));
        params.listener = Some(Arc::clone(&early) as _);
        Some(early)
    }

    /// For a job whose answer is encoded as `encoding` says, with the infotext in each file or without.
    fn new(job: &Options, encoding: &Options) -> Self {
        Self::with(
            job,
            encoding,
            encode_picture,
            (cores() / 2).clamp(1, MOST_HELPERS),
        )
    }

    fn with(job: &Options, encoding: &Options, encode: Encode, helpers: usize) -> Self {
        Self(Arc::new(Shared {
            options: encoding.clone(),
            with_text: carries_text(job),
            encode,
            helpers,
            state: Mutex::default(),
            helper_left: Condvar::new(),
        }))
    }

    /// Whether its pictures are those that these options ask for.
    fn serves(&self, encoding: &Options) -> bool {
        let decisive = |options: &Options| {
            (
                options.text("samples_format").to_owned(),
                options.i64("jpeg_quality"),
            )
        };
        decisive(&self.0.options) == decisive(encoding)
    }
}

impl PictureListener for EarlyEncoder {
    fn finished(&self, picture: &GeneratedImage) {
        let shared = &self.0;
        let mut state = shared.state.lock();
        state.waiting.push_back(Key {
            picture: Arc::downgrade(&picture.image),
            text: picture.infotext.clone().filter(|_| shared.with_text),
        });
        if state.helpers >= shared.helpers {
            return;
        }
        let for_helper = Arc::clone(shared);
        let helper = thread::Builder::new().name("encoder".to_owned());
        // Without a thread the picture waits for the end.
        if helper.spawn(move || help(&for_helper)).is_ok() {
            state.helpers += 1;
        }
    }
}

impl Drop for EarlyEncoder {
    fn drop(&mut self) {
        self.0.state.lock().waiting.clear();
    }
}

/// A helper's life: it ends when nothing waits.
fn help(shared: &Shared) {
    let mut state = shared.state.lock();
    while let Some(key) = state.waiting.pop_front() {
        // Nobody has the picture any more.
        let Some(picture) = key.picture.upgrade() else {
            continue;
        };
        state.running.push(key.clone());
        drop(state);
        let texts = texts(key.text.as_deref());
        let encoded = catch_unwind(AssertUnwindSafe(|| {
            (shared.encode)(&picture, &texts, &shared.options)
        }));
        drop(texts);
        drop(picture);
        state = shared.state.lock();
        state
            .running
            .retain(|other| !other.picture.ptr_eq(&key.picture));
        // What failed is done again at the end, so that its error is the job's.
        if let Ok(Ok(content)) = encoded
            && key.picture.strong_count() > 0
        {
            state.done.push((key, content));
        }
    }
    state.helpers -= 1;
    shared.helper_left.notify_all();
}

/// Whether files of answers carry their infotext.
fn carries_text(job: &Options) -> bool {
    job.bool("enable_pnginfo")
}

fn texts(text: Option<&str>) -> Vec<(&str, &str)> {
    text.into_iter().map(|text| ("parameters", text)).collect()
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Every picture as base64, in order, with its infotext where pictures carry one. What `early` has of these very pictures
/// is taken as it is; the rest is encoded now, on all cores.
///
/// # Errors
/// Of the first picture that has one: `Invalid image format` where the option names none that can be encoded.
pub(super) fn encode_all(
    images: &[GeneratedImage],
    job: &Options,
    encoding: &Options,
    early: Option<&EarlyEncoder>,
) -> Result<Vec<String>, ApiError> {
    let with_text = carries_text(job);
    let text = |image: &'_ GeneratedImage| image.infotext.clone().filter(|_| with_text);
    let early = early.filter(|early| early.serves(encoding));
    let mut contents: Vec<Option<String>> = vec![None; images.len()];
    let mut now = Vec::new();
    let take = |state: &mut State, image: &GeneratedImage| {
        let text = text(image);
        let found = |(key, _): &(Key, String)| key.is(image, text.as_deref());
        let at = state.done.iter().position(found)?;
        Some(state.done.swap_remove(at).1)
    };
    match early {
        Some(early) => {
            let mut state = early.0.state.lock();
            state.waiting.clear();
            for (index, image) in images.iter().enumerate() {
                contents[index] = take(&mut state, image);
                let text = text(image);
                let is_running = || {
                    state
                        .running
                        .iter()
                        .any(|key| key.is(image, text.as_deref()))
                };
                if contents[index].is_none() && !is_running() {
                    now.push(index);
                }
            }
        }
        None => now.extend(0..images.len()),
    }
    let encode = |index: usize| {
        let image = &images[index];
        encode_picture(&image.image, &texts(text(image).as_deref()), encoding)
    };
    let mut encoded: Vec<_> = now.iter().copied().zip(in_parallel(&now, encode)).collect();
    if let Some(early) = early {
        let mut state = early.0.state.lock();
        while state.helpers > 0 {
            early.0.helper_left.wait(&mut state);
        }
        for (index, image) in images.iter().enumerate() {
            if contents[index].is_none() {
                contents[index] = take(&mut state, image);
            }
        }
    }
    let mut answer = Vec::with_capacity(images.len());
    for (index, content) in contents.into_iter().enumerate() {
        let content = match content {
            Some(content) => content,
            None => match encoded.iter().position(|(of, _)| *of == index) {
                Some(at) => encoded.swap_remove(at).1?,
                None => encode(index)?,
            },
        };
        answer.push(content);
    }
    Ok(answer)
}

/// The work on every index, shared among the cores; answers in the order of `indices`. A panic is the caller's.
fn in_parallel<T: Send>(indices: &[usize], work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let hands = cores().min(indices.len());
    if hands < 2 {
        return indices.iter().map(|&index| work(index)).collect();
    }
    let next = AtomicUsize::new(0);
    let hand = || {
        let mut done = Vec::new();
        while let Some(&index) = indices.get(next.fetch_add(1, Ordering::Relaxed)) {
            done.push((index, catch_unwind(AssertUnwindSafe(|| work(index)))));
        }
        done
    };
    let mut done = thread::scope(|scope| {
        let helpers: Vec<_> = (1..hands)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, hand).ok())
            .collect();
        let mut done = hand();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter()
        .map(|(_, outcome)| outcome.unwrap_or_else(|panic| resume_unwind(panic)))
        .collect()
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use serde_json::json;

    use super::*;

    fn picture(width: u32, height: u32, infotext: Option<&str>) -> GeneratedImage {
        let pixels = RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])
        });
        GeneratedImage {
            image: Arc::new(pixels.into()),
            infotext: infotext.map(str::to_owned),
        }
    }

    fn pictures() -> Vec<GeneratedImage> {
        (1..7)
            .map(|side| picture(side * 9, 20, (side % 3 > 0).then_some("a cat\nSteps: 1")))
            .collect()
    }

    fn options(format: &str, quality: i64) -> Options {
        let mut options = Options::default();
        options.set("samples_format", json!(format));
        options.set("jpeg_quality", json!(quality));
        options
    }

    /// Tells of the pictures and waits until the helpers have nothing to do.
    fn told(early: EarlyEncoder, images: &[GeneratedImage]) -> EarlyEncoder {
        for image in images {
            early.finished(image);
        }
        let mut state = early.0.state.lock();
        while state.helpers > 0 {
            early.0.helper_left.wait(&mut state);
        }
        drop(state);
        early
    }

    /// Puts a mark in the place of everything that is encoded already.
    fn marked(early: EarlyEncoder) -> EarlyEncoder {
        for (_, content) in &mut early.0.state.lock().done {
            "early".clone_into(content);
        }
        early
    }

    #[test]
    fn pictures_encoded_early_have_the_same_bytes() {
        let images = pictures();
        for format in ["png", "jpg", "webp"] {
            for with_text in [true, false] {
                let encoding = options(format, 70);
                let mut job = Options::default();
                job.set("enable_pnginfo", json!(with_text));
                let one_by_one: Vec<_> = images
                    .iter()
                    .map(|image| {
                        let text = image.infotext.as_deref().filter(|_| with_text);
                        encode_picture(&image.image, &texts(text), &encoding).unwrap()
                    })
                    .collect();
                let early = told(EarlyEncoder::new(&job, &encoding), &images[..4]);
                assert_eq!(early.0.state.lock().done.len(), 4);
                let with = encode_all(&images, &job, &encoding, Some(&early)).unwrap();
                assert!(with == one_by_one, "{format} {with_text}");
                let without = encode_all(&images, &job, &encoding, None).unwrap();
                assert!(without == one_by_one, "{format} {with_text}");
            }
        }
    }

    #[test]
    fn what_was_encoded_early_is_taken_for_that_very_picture_alone() {
        let (mut job, encoding) = (Options::default(), options("png", 80));
        job.set("enable_pnginfo", json!(true));
        let images = pictures();
        let early = || marked(told(EarlyEncoder::new(&job, &encoding), &images[1..3]));
        let answer = |images: &[GeneratedImage], job: &Options, encoding: &Options| {
            let answer = encode_all(images, job, encoding, Some(&early())).unwrap();
            let is_early = answer.iter().map(|content| content == "early");
            is_early.collect::<Vec<_>>()
        };
        assert_eq!(
            answer(&images[..4], &job, &encoding),
            [false, true, true, false]
        );
        for other in [options("jpeg", 80), options("png", 81)] {
            assert_eq!(answer(&images[1..3], &job, &other), [false, false]);
        }
        let mut without_text = job.clone();
        without_text.set("enable_pnginfo", json!(false));
        // The third has no text either way.
        assert_eq!(
            answer(&images[1..3], &without_text, &encoding),
            [false, true]
        );
        let mut changed = images.clone();
        changed[1].infotext = Some("another".to_owned());
        changed[2].image = Arc::new((*changed[2].image).clone());
        assert_eq!(answer(&changed[1..3], &job, &encoding), [false, false]);
    }

    #[test]
    fn what_fails_beside_the_job_is_done_again_at_its_end() {
        let (job, encoding) = (Options::default(), options("png", 80));
        let images = pictures();
        let plain = encode_all(&images, &job, &encoding, None).unwrap();
        let failing: [Encode; 2] = [
            |_, _, _| panic!("asked for"),
            |_, _, _| Err(ApiError::http(500, "asked for")),
        ];
        for encode in failing {
            let early = told(EarlyEncoder::with(&job, &encoding, encode, 2), &images);
            assert!(early.0.state.lock().done.is_empty());
            let answer = encode_all(&images, &job, &encoding, Some(&early)).unwrap();
            assert!(answer == plain);
        }
        // While the helpers still work, too.
        let slow: Encode = |_, _, _| {
            thread::sleep(std::time::Duration::from_millis(20));
            Err(ApiError::http(500, "asked for"))
        };
        let early = EarlyEncoder::with(&job, &encoding, slow, 2);
        for image in &images {
            early.finished(image);
        }
        let answer = encode_all(&images, &job, &encoding, Some(&early)).unwrap();
        assert!(answer == plain);
    }

    #[test]
    fn the_first_error_is_the_answers() {
        let job = Options::default();
        let mut images = pictures();
        images.push(picture(17_000, 1, None));
        for (format, words) in [("gif", "Invalid image format"), ("webp", "WebP")] {
            let encoding = options(format, 80);
            let early = told(EarlyEncoder::new(&job, &encoding), &images);
            let error = encode_all(&images, &job, &encoding, Some(&early)).unwrap_err();
            let alone = encode_picture(&images[6].image, &[], &encoding).unwrap_err();
            assert_eq!(format!("{error:?}"), format!("{alone:?}"));
            assert!(format!("{error:?}").contains(words), "{error:?}");
        }
    }

    #[test]
    fn pictures_that_nobody_has_any_more_are_not_kept() {
        let (job, encoding) = (Options::default(), options("png", 80));
        let slow: Encode = |_, _, _| {
            thread::sleep(std::time::Duration::from_millis(20));
            Ok("early".to_owned())
        };
        let early = EarlyEncoder::with(&job, &encoding, slow, 1);
        let kept = picture(8, 8, None);
        early.finished(&picture(8, 8, None));
        early.finished(&picture(8, 8, None));
        let early = told(early, std::slice::from_ref(&kept));
        let state = early.0.state.lock();
        assert!(state.done.iter().all(|(key, _)| key.is(&kept, None)));
        assert_eq!(state.done.len(), 1);
    }

    #[test]
    fn work_in_parallel_answers_in_order_and_panics_in_the_caller() {
        let indices: Vec<usize> = (0..40).rev().step_by(3).rev().collect();
        assert_eq!(in_parallel(&indices, |index| index), indices);
        let panics = catch_unwind(|| in_parallel(&indices, |index| assert_ne!(index, 6)));
        assert!(panics.is_err());
    }
}
