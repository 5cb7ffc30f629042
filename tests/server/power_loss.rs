//! The power is cut under the real program, again and again: its pool is on a file system that loses what was not synced
//! (`lossy_fs.rs`). What a flush covered must be there: data that went through io_uring, and `meta/` of the real RocksDB.
//!
//! `ROK_SEED=7` replays a seed's choices (how requests come in between is the system's), `ROK_POWER_CYCLES=1000` cuts more often.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use crate::history::{Blow, SnapshotValues};
use crate::load::{Load, Pattern, Plan, Scope as Compared, Shared, compare, compare_snapshot};
use crate::lossy_fs::{Lies, Losses, Mounted, Scope, Tree};
use crate::support::{Finished, Home, WAIT_MAX, finish, request, send_signal, skip};
use crate::victim::Victim;

/// Cuts in a run: of data, of `meta/`, and of both, in turns.
const CYCLES: u64 = 48;
/// Cuts on a disk that lies, one of which must be seen, in each case.
const CONTROL_CYCLES: u64 = 40;
const POOL_SIZE: &str = "128M";
const VOLUME: &str = "vol1";
const VOLUME_SIZE: &str = "64M";
/// 16 MiB: small, so that writes overlap.
const BLOCKS: u64 = 4096;
/// A cut comes before one of the first so many changes and syncs, as a power of two: an opening has dozens.
const CHANGES_EXPONENT_MAX: u32 = 10;
/// Of a cut that comes in an opening: it is done with fewer.
const OPENING_EXPONENT_MAX: u32 = 6;
/// When it comes at last, if there are not so many.
const CUT_AFTER_MAX: Duration = Duration::from_secs(2);
/// How often one looks whether a daemon is ready or stopped.
const LOOK: Duration = Duration::from_millis(5);

/// What really happened.
#[derive(Default, Debug)]
struct Counts {
    inside_opening: u64,
    under_load: u64,
    by_time: u64,
    snapshots: u64,
    compared_blocks: u64,
    losses: Losses,
}

struct Run {
    /// Before the home, in which it is mounted: fields are dropped in their order.
    disk: Option<Mounted>,
    home: Home,
    shared: Shared,
    random: SmallRng,
    /// A snapshot that was acknowledged before the last cut, and what it may hold.
    snapshot: Option<(String, SnapshotValues)>,
    counts: Counts,
}

#[test]
fn what_a_flush_covers_outlives_the_power() {
    let seed = setting("ROK_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
    let cycles = setting("ROK_POWER_CYCLES").unwrap_or(CYCLES);
    let replay = format!(
        "replay: ROK_SEED={seed} ROK_POWER_CYCLES={cycles} cargo test --test server what_a_flush_covers -- --nocapture"
    );
    println!("{replay}");
    let Some(mut run) = Run::new(seed) else { return };
    for cycle in 0..cycles {
        let scope = [Scope::Data, Scope::Meta, Scope::All][usize::try_from(cycle % 3).expect("small")];
        run.cycle(scope)
            .unwrap_or_else(|failure| panic!("cycle {cycle}, {scope:?}: {failure}\n{:?}\n{replay}", run.counts));
    }
    run.opened().unwrap_or_else(|failure| panic!("at last: {failure}\n{:?}\n{replay}", run.counts));
    println!("{:?}, {} requests acknowledged", run.counts, run.shared.acknowledged_count());
    let Counts { inside_opening, under_load, snapshots, losses, .. } = run.counts;
    assert!(inside_opening > 0 && under_load > 0 && snapshots > 0, "{replay}");
    assert!(losses.kept > 0 && losses.torn > 0 && losses.lost > 0, "{replay}");
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let cases =
        [(Scope::Data, Lies::All), (Scope::Meta, Lies::All), (Scope::All, Lies::All), (Scope::All, Lies::Directories)];
    for (scope, lies) in cases {
        let Some(mut run) = Run::new(7) else { return };
        run.disk().tree().lies = lies;
        // A panic is one of the ways to find out: a client whose request fails, say.
        let mut finds = (1..=CONTROL_CYCLES).filter_map(|cycle| {
            let result = catch_unwind(AssertUnwindSafe(|| run.cycle(scope)));
            Some((cycle, result.unwrap_or_else(|_| Err("a panic".to_owned())).err()?))
        });
        let found = finds.next();
        println!("{scope:?}, {lies:?}: {found:?}");
        assert!(found.is_some(), "{scope:?}, {lies:?}: {:?}", run.counts);
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

impl Run {
    /// A pool with a volume, all of it on the disk; none where no file system can be mounted.
    fn new(seed: u64) -> Option<Self> {
        let home = Home::new();
        std::fs::create_dir(home.path("disk")).expect("a directory");
        let disk = match Mounted::new(Tree::default(), &home.path("disk")) {
            Ok(disk) => disk,
            Err(error) => {
                skip(&format!("no file system can be mounted: {error}"));
                return None;
            }
        };
        let (pool, key) = (home.text("disk/pool"), home.text("pool.key"));
        home.run(["pool", "create", &pool, "--size", POOL_SIZE, "--key-file", &key, "--generate-key"]).success();
        let run = Self {
            disk: Some(disk),
            home,
            shared: Shared::that_outlives(Blow::PowerLoss),
            random: SmallRng::seed_from_u64(seed),
            snapshot: None,
            counts: Counts::default(),
        };
        let mut victim = Victim::spawn(run.serve());
        victim.wait_until_ready();
        run.home.run(["create", VOLUME, "--size", VOLUME_SIZE]).success();
        drop(victim.kill());
        run.disk().tree().sync_all();
        Some(run)
    }

    fn disk(&self) -> &Mounted {
        self.disk.as_ref().expect("it is mounted")
    }

    fn serve(&self) -> Command {
        self.home.command(["serve", "--pool", &self.home.text("disk/pool"), "--key-file", &self.home.text("pool.key")])
    }

    fn socket(&self) -> PathBuf {
        self.home.path("run/rok-blk/nbd.sock")
    }

    /// Opens, compares, and cuts the power; or cuts it within an opening.
    fn cycle(&mut self, scope: Scope) -> Result<(), String> {
        if self.random.random_bool(0.3) {
            self.cut_opening(scope)
        } else {
            let victim = self.opened()?;
            self.cut_load(victim);
            self.lose(scope)
        }
    }

    /// A daemon that is ready and holds what it must.
    fn opened(&mut self) -> Result<Victim, String> {
        let victim = Victim::spawn(self.serve()).ready_or_refused().map_err(|refusal| format!("{refusal:?}"))?;
        let status = request(&self.home.socket(), "GET", "/v1/status", "").body;
        if let Some(failure) = status["pool"]["failure"].as_str() {
            return Err(format!("the pool has failed: {failure}"));
        }
        self.counts.compared_blocks += compare(&self.socket(), VOLUME, &mut self.shared.history(), Compared::All)?;
        if let Some((name, values)) = self.snapshot.take() {
            self.counts.compared_blocks += compare_snapshot(&self.socket(), &name, &values, BLOCKS)?;
            for arguments in [["show", &name].as_slice(), &["rm", &name, "--now"]] {
                let Finished { code, stderr, .. } = self.home.run(arguments);
                if code != Some(0) {
                    return Err(format!("{name}, which was acknowledged: {stderr}"));
                }
            }
            self.counts.snapshots += 1;
        }
        Ok(victim)
    }

    /// Cuts the power before one of the changes of a mixed load.
    fn cut_load(&mut self, victim: Victim) {
        let plan = Plan {
            socket: self.socket(),
            export: VOLUME.to_owned(),
            blocks: 0..BLOCKS,
            pattern: Pattern::Mixed,
            seed: self.random.random(),
        };
        let changes = self.changes(CHANGES_EXPONENT_MAX);
        let load = Load::start(&plan, &self.shared);
        self.shared.history().begin_snapshot();
        let snapshot = self.home.command(["snapshot", VOLUME]);
        let snapshot = thread::spawn(move || finish(snapshot));
        self.disk().stop_after(changes);
        if !self.disk().is_stopped_within(CUT_AFTER_MAX) {
            self.disk().stop();
            self.counts.by_time += 1;
        }
        self.kill(victim);
        load.finish();
        let Finished { code, stdout, .. } = snapshot.join().expect("it was waited for");
        let values = self.shared.history().end_snapshot();
        self.snapshot = (code == Some(0)).then(|| (stdout.trim().to_owned(), values));
        self.counts.under_load += 1;
    }

    fn cut_opening(&mut self, scope: Scope) -> Result<(), String> {
        let changes = self.changes(OPENING_EXPONENT_MAX);
        self.disk().stop_after(changes);
        let mut victim = Victim::spawn(self.serve());
        let end = Instant::now() + WAIT_MAX;
        let mut is_ready = false;
        while !self.disk().is_stopped_within(LOOK) {
            if victim.wait_for("Ready.", LOOK) {
                is_ready = true;
                self.disk().stop();
            } else if let Some(said) = victim.refusal() {
                return Err(said);
            } else if Instant::now() >= end {
                return Err("it neither opens nor changes anything".to_owned());
            }
        }
        self.kill(victim);
        self.counts.inside_opening += u64::from(!is_ready);
        self.lose(scope)
    }

    fn changes(&mut self, exponent_max: u32) -> u64 {
        let power = 1 << self.random.random_range(0..=exponent_max);
        self.random.random_range(power / 2..power)
    }

    /// Ends a daemon whose disk has stopped, at once: none of its threads sees a request fail.
    fn kill(&self, victim: Victim) {
        send_signal(victim.process_id(), libc::SIGKILL);
        self.disk().refuse();
        drop(victim.kill());
    }

    /// Loses what may be lost, and checks what is left.
    fn lose(&mut self, scope: Scope) -> Result<(), String> {
        let mut tree = self.disk.take().expect("it is mounted").take();
        let losses = tree.lose_power(scope, &mut self.random);
        self.counts.losses.kept += losses.kept;
        self.counts.losses.torn += losses.torn;
        self.counts.losses.lost += losses.lost;
        self.disk =
            Some(Mounted::new(tree, &self.home.path("disk")).map_err(|error| format!("it is not mounted: {error}"))?);
        let arguments = ["check", "--pool", &self.home.text("disk/pool"), "--key-file", &self.home.text("pool.key")];
        let checked = self.home.run(arguments);
        if checked.code == Some(0) { Ok(()) } else { Err(format!("{checked:?}")) }
    }
}
