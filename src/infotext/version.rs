//! Versions of stable-diffusion-webui, compared as Python's `packaging.version` does (PEP 440).

use std::cmp::Ordering;
use std::sync::LazyLock;

use regex::Regex;

static VERSION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?xi)^\s* v? (?P<release>[0-9]+(?:\.[0-9]+)*)
        (?:[-_.]?(?P<pre>alpha|a|beta|b|preview|pre|c|rc)[-_.]?(?P<pre_number>[0-9]*))?
        (?:-(?P<dash>[0-9]+)|[-_.]?(?P<post>post|rev|r)[-_.]?(?P<post_number>[0-9]*))?
        (?:[-_.]?(?P<dev>dev)[-_.]?(?P<dev_number>[0-9]*))?
        (?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)? \s*$",
    )
    .expect("the pattern is constant")
});

/// A version number, such as `v1.10.1`, `1.8.0-139` (139 commits later) or `1.10.0-RC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Without closing zeros.
    release: Vec<u64>,
    /// `(letter, number)`; sorts before the release, none after it.
    pre: Option<(u8, u64)>,
    /// Sorts after the release.
    post: Option<u64>,
    /// Sorts before everything else.
    dev: Option<u64>,
}

impl Version {
    /// Reads a version; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let found = VERSION.captures(text)?;
        let number = |name: &str| {
            found
                .name(name)
                .map(|digits| digits.as_str().parse().unwrap_or(0))
        };
        let mut release = found["release"]
            .split('.')
            .map(|part| part.parse().ok())
            .collect::<Option<Vec<u64>>>()?;
        while release.last() == Some(&0) {
            release.pop();
        }
        let letter = |text: &str| match text.to_ascii_lowercase().as_str() {
            "a" | "alpha" => b'a',
            "b" | "beta" => b'b',
            _ => b'r',
        };
        Some(Self {
            release,
            pre: found
                .name("pre")
                .map(|text| (letter(text.as_str()), number("pre_number").unwrap_or(0))),
            post: number("dash").or_else(|| number("post_number")),
            dev: number("dev_number"),
        })
    }

    /// The version that an infotext states, cut after the second dash group: the commit's hash in
    /// `v1.5.1-2-gabcdef` is no part of it.
    #[must_use]
    pub fn parse_infotext(text: &str) -> Option<Self> {
        let mut dashes = text.match_indices('-').map(|(index, _)| index);
        match (dashes.next(), dashes.next()) {
            (Some(first), Some(second)) if first > 0 && second > first + 1 => {
                Self::parse(&text[..second])
            }
            _ => Self::parse(text),
        }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        // A development version of nothing else sorts before the pre-releases.
        let pre = |version: &Self| match (version.pre, version.post, version.dev) {
            (Some((letter, number)), _, _) => (1, letter, number),
            (None, None, Some(_)) => (0, 0, 0),
            (None, _, _) => (2, 0, 0),
        };
        let dev = |version: &Self| version.dev.map_or((1, 0), |number| (0, number));
        self.release
            .cmp(&other.release)
            .then_with(|| pre(self).cmp(&pre(other)))
            .then_with(|| self.post.cmp(&other.post))
            .then_with(|| dev(self).cmp(&dev(other)))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_sort_as_pep_440_says() {
        let rising = [
            "1.5.1",
            "v1.5.1-2",
            "1.6.0.dev1",
            "1.6.0-RC",
            "1.6.0",
            "1.7.0-225",
            "1.8.0-139",
            "v1.10.1",
        ];
        for pair in rising.windows(2) {
            let [left, right] = [pair[0], pair[1]].map(|text| Version::parse(text).expect(text));
            assert!(left < right, "{pair:?}");
        }
        assert_eq!(Version::parse("1.6"), Version::parse("v1.6.0"));
        assert_eq!(Version::parse("f2.0.1v1.10.1-previous"), None);
        assert_eq!(
            Version::parse_infotext("v1.5.1-2-gabcdef"),
            Version::parse("1.5.1-2")
        );
    }
}
