//! What the documents promise: every make target is explained, every folder and every byte on disk has its place.

use crate::layers::LAYERS;
use crate::tree::{SourceFile, Violation};
use std::collections::BTreeSet;

/// Make targets that are named in the README but not there, or the other way round, or without help.
pub(crate) fn make_target_violations(files: &[SourceFile]) -> Vec<Violation> {
    let (Some(makefile), Some(readme)) = (find(files, "Makefile"), find(files, "README.md")) else {
        return vec![Violation::of_path("Makefile", "or README.md is missing")];
    };
    let (explained, phony) = (explained_targets(makefile), phony_targets(makefile));
    let documented = documented_targets(readme);
    let of = |file, names: BTreeSet<&str>, message: &str| -> Vec<Violation> {
        names.iter().map(|name| Violation::new(file, 0, format!("`make {name}` {message}"))).collect()
    };
    let mut violations = of(makefile, &phony - &explained, "has no text behind `##`");
    violations.extend(of(makefile, &explained - &phony, "is not in .PHONY"));
    violations.extend(of(readme, &explained - &documented, "is not explained"));
    violations.extend(of(readme, &documented - &explained, "does not exist"));
    violations
}

fn explained_targets(makefile: &SourceFile) -> BTreeSet<&str> {
    makefile.text.lines().filter(|line| line.contains(": ## ")).filter_map(|line| line.split(':').next()).collect()
}

fn phony_targets(makefile: &SourceFile) -> BTreeSet<&str> {
    makefile.text.lines().filter_map(|line| line.strip_prefix(".PHONY:")).flat_map(str::split_whitespace).collect()
}

/// The words behind `make ` within code: in a line of a block, or after a backtick.
fn documented_targets(readme: &SourceFile) -> BTreeSet<&str> {
    let mut targets = BTreeSet::new();
    let mut is_block = false;
    for line in readme.text.lines() {
        is_block ^= line.starts_with("```");
        let commands = line.split('`').skip(1).step_by(2).chain(is_block.then_some(line));
        let words = commands.filter_map(|command| command.strip_prefix("make "));
        targets.extend(words.filter_map(|words| words.split_whitespace().next()));
    }
    targets
}

/// A folder of `src/` that `ARCHITECTURE.md` does not name, or no such document.
pub(crate) fn architecture_violations(files: &[SourceFile]) -> Vec<Violation> {
    let Some(document) = find(files, "ARCHITECTURE.md") else {
        return vec![Violation::of_path(
            "ARCHITECTURE.md",
            "is missing: it shows the layers and the path of a write and a read",
        )];
    };
    let folders: BTreeSet<&str> = files
        .iter()
        .filter_map(|file| file.path.strip_prefix("src/")?.split_once('/'))
        .map(|(folder, _)| folder)
        .collect();
    folders
        .into_iter()
        .filter(|folder| {
            !document.text.contains(&format!("`{folder}`")) && !document.text.contains(&format!("src/{folder}"))
        })
        .map(|folder| Violation::new(document, 0, format!("does not name src/{folder}")))
        .collect()
}

/// The format's description is missing where the codec is.
pub(crate) fn format_violations(files: &[SourceFile]) -> Vec<Violation> {
    if find(files, "src/format/FORMAT.md").is_some() && find(files, "src/format/mod.rs").is_some() {
        return Vec::new();
    }
    vec![Violation::of_path("src/format/FORMAT.md", "is missing, or the codec is not beside it in src/format/mod.rs")]
}

/// A layer of the table that has no code: the table would guard nothing.
pub(crate) fn layer_violations(files: &[SourceFile]) -> Vec<Violation> {
    let exists = |name: &str| {
        find(files, &format!("src/{name}.rs")).is_some() || find(files, &format!("src/{name}/mod.rs")).is_some()
    };
    LAYERS
        .iter()
        .filter(|(name, _)| !exists(name))
        .map(|(name, _)| Violation::of_path(&format!("src/{name}"), "is a layer without code"))
        .collect()
}

/// Promises without a test, or with one that is not there: whoever removes or renames a test sees here what it was for.
pub(crate) fn contract_violations(files: &[SourceFile]) -> Vec<Violation> {
    let Some(document) = find(files, "docs/CONTRACT.md") else {
        return vec![Violation::of_path(
            "docs/CONTRACT.md",
            "is missing: it has what is promised, and the tests of it",
        )];
    };
    let mut violations = Vec::new();
    for (line, text) in document.text.lines().enumerate() {
        let mut names = text.split('`').skip(1).step_by(2).filter(|name| is_test_name(name)).peekable();
        let is_heading = text.starts_with("| |") || text.starts_with("| event") || text.starts_with("|---");
        if text.starts_with('|') && !is_heading && names.peek().is_none() {
            violations.push(Violation::new(document, line + 1, "names no test".to_owned()));
        }
        let missing = names.filter(|name| !files.iter().any(|file| has_test(file, name)));
        violations.extend(missing.map(|name| Violation::new(document, line + 1, format!("`{name}` is no test"))));
    }
    violations
}

/// Words joined by `_`, maybe behind their modules.
fn is_test_name(text: &str) -> bool {
    let is_word =
        text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b':'));
    is_word && text.matches('_').count() >= 2
}

fn has_test(file: &SourceFile, name: &str) -> bool {
    let mut parts = name.rsplit("::");
    let function = format!("fn {}()", parts.next().unwrap_or_default());
    let is_place =
        |part: &str| file.path.split('/').any(|place| place == part || place.strip_suffix(".rs") == Some(part));
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let is_test =
        |at: usize| lines[..at].iter().rev().take_while(|line| line.starts_with('#')).any(|line| *line == "#[test]");
    file.is_rust() && parts.all(is_place) && (0..lines.len()).any(|at| lines[at].starts_with(&function) && is_test(at))
}

fn find<'files>(files: &'files [SourceFile], path: &str) -> Option<&'files SourceFile> {
    files.iter().find(|file| file.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{assert_lines, assert_none, read_tree};

    #[test]
    fn every_make_target_is_explained() {
        assert_none(&make_target_violations(&read_tree()));
    }

    #[test]
    fn make_targets_that_differ_from_the_readme_are_found() {
        let makefile = ".PHONY: run test fly\nrun: ## Serve\ntest: ## Test\nbench: ## Measure\nfly:\n";
        let readme = "To make bread, `make run X=1`:\n```\nmake bench\nmake soup\n```\nmake cake\n";
        let files = [SourceFile::sample("Makefile", makefile), SourceFile::sample("README.md", readme)];
        let found: Vec<String> = make_target_violations(&files).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "Makefile:0: `make fly` has no text behind `##`",
                "Makefile:0: `make bench` is not in .PHONY",
                "README.md:0: `make test` is not explained",
                "README.md:0: `make soup` does not exist",
            ]
        );
    }

    #[test]
    fn the_architecture_names_every_folder() {
        assert_none(&architecture_violations(&read_tree()));
    }

    #[test]
    fn folders_that_the_architecture_does_not_name_are_found() {
        let code = ["src/map/mod.rs", "src/pool/log.rs", "src/lane/mod.rs", "src/lib.rs"]
            .map(|path| SourceFile::sample(path, ""));
        assert_lines(&architecture_violations(&code), &[0]);
        let mut files = code.to_vec();
        files.push(SourceFile::sample("ARCHITECTURE.md", "`map` and src/pool/log.rs; a lane without quotes"));
        let found = architecture_violations(&files);
        assert_eq!(found, [Violation::of_path("ARCHITECTURE.md", "does not name src/lane")]);
    }

    #[test]
    fn the_format_is_described_beside_its_codec() {
        assert_none(&format_violations(&read_tree()));
    }

    #[test]
    fn a_codec_without_description_is_found() {
        assert_lines(&format_violations(&[SourceFile::sample("src/format/mod.rs", "")]), &[0]);
        assert_lines(&format_violations(&[SourceFile::sample("src/format/FORMAT.md", "")]), &[0]);
    }

    #[test]
    fn every_promise_has_tests_that_are_there() {
        assert_none(&contract_violations(&read_tree()));
    }

    #[test]
    fn promises_without_tests_are_found() {
        let document = "| | promise |\n|---|\n| P1 | `server::kill::no_write_is_lost` |\n| P2 | a `kill -9` |\n\n`server::no_write_is_there`";
        let code = "#[test]\n#[ignore]\nfn no_write_is_lost() {\nfn no_write_is_there() {}";
        let files =
            [SourceFile::sample("docs/CONTRACT.md", document), SourceFile::sample("tests/server/kill.rs", code)];
        assert_lines(&contract_violations(&files), &[4, 6]);
        assert_lines(&contract_violations(&files[..1]), &[3, 4, 6]);
        assert_lines(&contract_violations(&files[1..]), &[0]);
    }

    #[test]
    fn every_layer_has_code() {
        assert_none(&layer_violations(&read_tree()));
    }

    #[test]
    fn a_layer_without_code_is_found() {
        let all: Vec<SourceFile> =
            LAYERS.iter().map(|(name, _)| SourceFile::sample(&format!("src/{name}.rs"), "")).collect();
        assert_none(&layer_violations(&all));
        assert_eq!(layer_violations(&all[1..]).len(), 1);
    }
}
