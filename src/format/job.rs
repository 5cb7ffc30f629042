//! The record of a job in the catalog: what was begun, and what came of it. Sealed, with its key as associated data.

use crate::format::FormatError;
use crate::format::codec::{Reader, Writer, len_u16};

/// Longest text of a job's record, in bytes; longer ones are cut.
pub const TEXT_BYTES_MAX: usize = 1024;

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// Under way; after a restart, to be gone on with.
    Running,
    /// It did what it should.
    Done,
    /// It could not.
    Failed,
    /// Somebody ended it.
    Cancelled,
}

/// What the numbers of a job's progress count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobUnit {
    /// Bytes of the pool.
    Bytes,
    /// Snapshots.
    Snapshots,
}

/// Why a job failed, as the API says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobFailure {
    /// The kind of the failure, a stable word.
    pub code: String,
    /// What failed, as a sentence.
    pub message: String,
    /// What to do about it; empty if nothing.
    pub hint: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRecord {
    /// Its number, from 1; never given twice while its record is there.
    pub id: u64,
    /// What it does, a stable word.
    pub work: String,
    /// What it works on; empty if the whole pool.
    pub target: String,
    /// How it stands.
    pub state: JobState,
    /// What `done` and `total` count.
    pub unit: JobUnit,
    /// How much is done.
    pub done: u64,
    /// How much there is; 0 if that is not known.
    pub total: u64,
    /// Seconds since 1970 when it began.
    pub began_at: u64,
    /// Seconds since 1970 when it ended; 0 while it runs.
    pub ended_at: u64,
    /// Why it failed, if it did.
    pub failure: Option<JobFailure>,
}

impl JobRecord {
    /// The body, before it is sealed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        for number in [self.id, self.done, self.total, self.began_at, self.ended_at] {
            writer.u64(number);
        }
        writer.u8(match self.state {
            JobState::Running => 0,
            JobState::Done => 1,
            JobState::Failed => 2,
            JobState::Cancelled => 3,
        });
        writer.u8(match self.unit {
            JobUnit::Bytes => 0,
            JobUnit::Snapshots => 1,
        });
        writer.u8(u8::from(self.failure.is_some()));
        writer.zeros(5);
        put_text(&mut writer, &self.work);
        put_text(&mut writer, &self.target);
        if let Some(failure) = &self.failure {
            put_text(&mut writer, &failure.code);
            put_text(&mut writer, &failure.message);
            put_text(&mut writer, &failure.hint);
        }
        writer.finish()
    }

    /// The record in a body.
    ///
    /// # Errors
    /// [`FormatError`] if the body is anything else.
    pub fn decode(body: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(body);
        let (id, done, total) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (began_at, ended_at) = (reader.u64()?, reader.u64()?);
        let state = match reader.u8()? {
            0 => JobState::Running,
            1 => JobState::Done,
            2 => JobState::Failed,
            3 => JobState::Cancelled,
            _ => return Err(FormatError::Field("job state")),
        };
        let unit = match reader.u8()? {
            0 => JobUnit::Bytes,
            1 => JobUnit::Snapshots,
            _ => return Err(FormatError::Field("unit of a job")),
        };
        let has_failure = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(FormatError::Field("failure of a job")),
        };
        reader.reserved(5)?;
        let (work, target) = (text(&mut reader)?, text(&mut reader)?);
        let failure = if has_failure {
            Some(JobFailure { code: text(&mut reader)?, message: text(&mut reader)?, hint: text(&mut reader)? })
        } else {
            None
        };
        reader.finish()?;
        Ok(Self { id, work, target, state, unit, done, total, began_at, ended_at, failure })
    }
}

/// A length u16 and the text, cut at the end of a character.
fn put_text(writer: &mut Writer, text: &str) {
    let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
    writer.u16(len_u16(text.len()));
    writer.bytes(text.as_bytes());
}

fn text(reader: &mut Reader<'_>) -> Result<String, FormatError> {
    let len = usize::from(reader.u16()?);
    if len > TEXT_BYTES_MAX {
        return Err(FormatError::Field("length of a job's text"));
    }
    let text = std::str::from_utf8(reader.bytes(len)?).map_err(|_| FormatError::Field("text of a job"))?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> JobRecord {
        JobRecord {
            id: 41,
            work: "reclaim".to_owned(),
            target: "vol1".to_owned(),
            state: JobState::Failed,
            unit: JobUnit::Bytes,
            done: 4096,
            total: 8192,
            began_at: 1_700_000_000,
            ended_at: 1_700_000_060,
            failure: Some(JobFailure { code: "failed".to_owned(), message: "m".to_owned(), hint: String::new() }),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let longest =
            JobFailure { message: "m".repeat(TEXT_BYTES_MAX), code: "failed".to_owned(), hint: String::new() };
        let records = [
            record(),
            JobRecord { failure: None, state: JobState::Running, ..record() },
            JobRecord { unit: JobUnit::Snapshots, state: JobState::Cancelled, ..record() },
            JobRecord { failure: Some(longest), state: JobState::Done, ..record() },
        ];
        for record in records {
            assert_eq!(JobRecord::decode(&record.encode()), Ok(record));
        }
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        // One byte, then characters of two: the limit falls within one of them.
        let long = JobRecord { target: format!("a{}", "\u{e4}".repeat(TEXT_BYTES_MAX)), ..record() };

        let back = JobRecord::decode(&long.encode()).expect("our own");

        assert_eq!(back.target.len(), TEXT_BYTES_MAX - 1);
        assert!(long.target.starts_with(&back.target));
    }

    #[test]
    fn every_cut_or_foreign_body_is_refused() {
        let body = record().encode();
        for len in 0..body.len() {
            JobRecord::decode(&body[..len]).expect_err("cut short");
        }
        JobRecord::decode(&[&body[..], &[0]].concat()).expect_err("too long");
        for (offset, name) in [(40, "job state"), (41, "unit of a job"), (42, "failure of a job")] {
            let mut body = body.clone();
            body[offset] = 9;
            assert_eq!(JobRecord::decode(&body), Err(FormatError::Field(name)));
        }
        let mut body = body;
        body[43] = 1;
        assert_eq!(JobRecord::decode(&body), Err(FormatError::Reserved));
    }
}
