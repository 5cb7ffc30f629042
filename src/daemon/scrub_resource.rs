//! What the API answers about the scrub of the pool, and takes.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::job_resource::job_reference;
use super::resource::{ApiVersion, Kind, time_text};
use crate::format::scrub::{Damage, DamageKind, DamageReader, ScrubRecord};
use crate::pool::Catalog;
use crate::units::BLOCK_SIZE_U64;

/// What a scrub reads in a second at most, if nothing is said, in bytes.
pub const RATE_BYTES_DEFAULT: u64 = 64 << 20;
/// The least that it can be told to.
pub const RATE_BYTES_MIN: u64 = 1 << 20;

/// Whether the pool is being scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScrubPhase {
    /// It never was.
    Never,
    /// A pass is under way.
    Running,
    /// A pass is not at its end, and nobody goes on with it.
    Paused,
    /// The last pass was given up.
    Stopped,
    /// The last pass came to its end.
    Done,
}

/// A volume that reads errors, now or in snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedVolume {
    /// The volume's name.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Its id.
    pub uuid: Uuid,
    /// Whether the volume had the range when it was found, and not only snapshots of it.
    pub is_head: bool,
    /// How many of its snapshots had it.
    pub snapshot_count: u64,
    /// Numbers of those that are there still, of the first eight.
    pub snapshots: Vec<u64>,
}

/// Bytes of volumes that read as errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DamagedRange {
    /// What is wrong, a stable word: `content` is not what was written, `unreadable` the device does not give, and of `map`
    /// nobody knows where it is.
    pub code: String,
    /// Where the range begins in each of the volumes, in bytes.
    pub offset: u64,
    /// How long it is, in bytes.
    pub size: u64,
    /// Who reads errors there: at most eight.
    pub volumes: Vec<DamagedVolume>,
    /// The same as a sentence.
    pub message: String,
}

/// The scrub of the pool, and what it has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrubbing {
    /// Whether it runs.
    pub state: ScrubPhase,
    /// The job that it is; null if none runs.
    pub job: Option<String>,
    /// When the pass under way, or the last one, began; null if there was none.
    pub began_at: Option<String>,
    /// When the last whole pass ended; null if there was none.
    pub ended_at: Option<String>,
    /// Whole passes.
    pub passes: u64,
    /// Bytes that the pass under way, or the last one, has read.
    #[serde(rename = "read")]
    pub read_bytes: u64,
    /// Bytes that it reads in a second at most.
    #[serde(rename = "rate")]
    pub rate_bytes: u64,
    /// Damaged blocks of 4 KiB that are known, those beyond the list too.
    pub damaged_blocks: u64,
    /// Where they are, by volume and place: at most 1000 ranges. One that was written anew or removed is listed until the
    /// next pass comes there.
    pub damages: Vec<DamagedRange>,
}

/// The scrub of the pool.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ScrubAnswer {
    /// Which API speaks.
    pub api: ApiVersion,
    /// `Scrub`.
    pub kind: Kind,
    /// Nothing was changed: this is how it is.
    pub is_dry_run: bool,
    /// How it is.
    #[serde(flatten)]
    pub scrub: Scrubbing,
}

/// Options of beginning a scrub.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ScrubOptions {
    /// Begin nothing, say how it is.
    #[serde(default)]
    #[param(required = false)]
    pub dry_run: bool,
    /// Bytes to read in a second at most, from 1 MiB on; 64 MiB if nothing is said.
    #[serde(default)]
    #[param(required = false)]
    pub rate: Option<u64>,
    /// Pause when so many percent of the used space are read, 1 to 100; the next scrub goes on there.
    #[serde(default)]
    #[param(required = false)]
    pub subset: Option<u8>,
}

impl ScrubAnswer {
    /// Of the scrub as it is.
    pub(super) const fn new(scrub: Scrubbing, is_dry_run: bool) -> Self {
        Self { api: ApiVersion::V1, kind: Kind::Scrub, is_dry_run, scrub }
    }
}

impl Scrubbing {
    /// From what the engine remembers.
    pub(super) fn new(record: &ScrubRecord, catalog: &Catalog, job: Option<u64>) -> Self {
        let state = match record.place {
            Some(_) if job.is_some() => ScrubPhase::Running,
            Some(_) => ScrubPhase::Paused,
            None if job.is_some() => ScrubPhase::Running,
            None if record.began_at == 0 => ScrubPhase::Never,
            None if record.ended_at < record.began_at => ScrubPhase::Stopped,
            None => ScrubPhase::Done,
        };
        let time = |seconds: u64| Some(seconds).filter(|seconds| *seconds > 0).map(time_text);
        let damages = DamagedRange::list(&record.damages, catalog);
        Self {
            state,
            job: job.map(job_reference),
            began_at: time(record.began_at),
            ended_at: time(record.ended_at),
            passes: record.pass_count,
            read_bytes: record.read_blocks * BLOCK_SIZE_U64,
            rate_bytes: record.rate_bytes,
            damaged_blocks: damages.iter().map(|range| range.size / BLOCK_SIZE_U64).sum::<u64>()
                + record.unlisted_blocks,
            damages,
        }
    }
}

impl DamagedRange {
    /// Those of volumes and snapshots that are there still; what is side by side is one.
    pub(super) fn list(damages: &[Damage], catalog: &Catalog) -> Vec<Self> {
        let mut ranges: Vec<Self> = Vec::new();
        for damage in damages {
            let volumes: Vec<DamagedVolume> =
                damage.readers.iter().filter_map(|reader| DamagedVolume::new(reader, catalog)).collect();
            if volumes.is_empty() {
                continue;
            }
            let code = code_of(damage.kind).to_owned();
            let offset = damage.first.get() * BLOCK_SIZE_U64;
            let size = (u64::from(damage.count) * BLOCK_SIZE_U64).min(end_of(damage, catalog).saturating_sub(offset));
            if size == 0 {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.offset + last.size == offset && last.code == code && last.volumes == volumes => {
                    last.size += size;
                }
                _ => ranges.push(Self { code, offset, size, volumes, message: String::new() }),
            }
        }
        ranges.sort_by(|left, right| {
            (&left.volumes[0].reference, left.offset).cmp(&(&right.volumes[0].reference, right.offset))
        });
        ranges.iter_mut().for_each(|range| range.message = range.sentence());
        ranges
    }

    fn sentence(&self) -> String {
        let bytes = format!("bytes {} to {}", self.offset, self.offset + self.size - 1);
        let of = self.volumes.iter().map(DamagedVolume::text).collect::<Vec<_>>().join(", ");
        match self.code.as_str() {
            "unreadable" => format!("The device does not give {bytes} of {of}"),
            "map" => format!("The map of {bytes} of {of} cannot be read"),
            _ => format!("What the device holds for {bytes} of {of} is not what was written"),
        }
    }
}

impl DamagedVolume {
    fn new(reader: &DamageReader, catalog: &Catalog) -> Option<Self> {
        let volume = catalog.volume(reader.volume)?;
        let is_there = |number: &u64| catalog.snapshot((volume.id, *number)).is_some();
        let snapshots: Vec<u64> = reader.snapshots.iter().copied().filter(is_there).collect();
        let is_any = reader.is_head || !snapshots.is_empty() || reader.snapshot_count > len(&reader.snapshots);
        let (reference, uuid) = (volume.name.clone(), volume.id);
        let snapshot_count = reader.snapshot_count - (len(&reader.snapshots) - len(&snapshots));
        is_any.then_some(Self { reference, uuid, is_head: reader.is_head, snapshot_count, snapshots })
    }

    /// References to all that have it: `vol1, vol1@3 and 2 more snapshots of it`.
    fn text(&self) -> String {
        let head = self.is_head.then(|| self.reference.clone());
        let snapshots = self.snapshots.iter().map(|number| format!("{}@{number}", self.reference));
        let listed = head.into_iter().chain(snapshots).collect::<Vec<_>>().join(", ");
        match self.snapshot_count - len(&self.snapshots) {
            0 => listed,
            more if listed.is_empty() => format!("{more} snapshots of {}", self.reference),
            more => format!("{listed} and {more} more snapshots of it"),
        }
    }
}

/// Where the largest of those ends that have it: a leaf may go beyond.
fn end_of(damage: &Damage, catalog: &Catalog) -> u64 {
    let sizes = damage.readers.iter().flat_map(|reader| {
        let head = catalog.volume(reader.volume).filter(|_| reader.is_head).map(|volume| volume.size_bytes);
        let snapshots = reader.snapshots.iter().filter_map(|number| catalog.snapshot((reader.volume, *number)));
        head.into_iter().chain(snapshots.map(|snapshot| snapshot.size_bytes)).collect::<Vec<_>>()
    });
    sizes.max().unwrap_or(u64::MAX)
}

const fn code_of(kind: DamageKind) -> &'static str {
    match kind {
        DamageKind::Content => "content",
        DamageKind::Unreadable => "unreadable",
        DamageKind::Map => "map",
    }
}

fn len(numbers: &[u64]) -> u64 {
    crate::units::to_u64(numbers.len())
}
