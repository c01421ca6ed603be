//! The comparison as one HTML page: bars for each image and way, one start of each in detail, the conditions.
//!
//! In: a [`Report`]. Out: HTML that is well-formed XML too.
//! Invariant: the file is all there is: style inside, no script, nothing is fetched from anywhere.
//! Not here: the drawings ([`super::svg`]).

use std::fmt::Write as _;

use super::{
    report::{ImageFigures, Report, Sample},
    svg::{self, Bar, escape},
    table,
    way::Way,
};
use crate::playground::sources::Sources;

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1c2430;--soft:#68717f;--page:#fff;--plain:#9aa7b8;--ours:#2f7d5b;--rival:#b4713d;\
--local:#5a6b8c;--s0:#2f7d5b;--s1:#4b78c2;--s2:#b4713d;--s3:#a14a76}\
@media(prefers-color-scheme:dark){:root{--text:#e4e8ee;--soft:#98a2b3;--page:#15191f;--plain:#66748a;--ours:#4fae85;\
--rival:#d0945f;--local:#8b9dc3;--s0:#4fae85;--s1:#7aa2e3;--s2:#d0945f;--s3:#cf7ba6}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--text);background:var(--page);max-width:900px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.6rem}h2{margin-top:2.5rem}h3{font-size:1rem;margin:1.4rem 0 .3rem}p,pre{color:var(--soft)}\
pre{white-space:pre-wrap;font-size:13px}svg{max-width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;\
fill:var(--text)}svg .small{font-size:11px;fill:var(--soft)}.plain{fill:var(--plain)}.ours{fill:var(--ours)}.rival{fill:var(--rival)}\
.local{fill:var(--local)}.pull{opacity:.55}.whisker{stroke:var(--text);opacity:.6}.mark{stroke:var(--soft);stroke-dasharray:3 3}\
.axis{stroke:var(--soft);fill:none}.line{fill:none;stroke-width:2}.s0{stroke:var(--s0)}.s1{stroke:var(--s1)}.s2{stroke:var(--s2)}\
.s3{stroke:var(--s3)}.f0{fill:var(--s0)}.f1{fill:var(--s2)}.f2{fill:var(--s1)}.f3{fill:var(--plain)}.f4{fill:var(--s3)}\
.f5{fill:var(--local)}svg.key{display:inline-block;width:10px;height:10px;margin-left:.8em}table{border-collapse:collapse;font-size:13px}td,th{padding:.2rem .6rem;text-align:right;\
border-bottom:1px solid var(--plain)}td:first-child,th:first-child{text-align:left}details{margin:.4rem 0}";

pub fn html(report: &Report) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width\"/><title>Headstart: cold starts</title>\
         <style>{STYLE}</style></head><body>\n<h1>Cold starts</h1>\n\
         <p>Time from asking for an image until its container is ready. The pale part of a bar is the pull, the full part \
         is from create to ready; bars are medians, the thin line is the range of single starts.</p>\n<pre>{}</pre>\n",
        escape(&table::conditions(report))
    );
    for image in &report.images {
        section(&mut out, report, image);
    }
    out + "</body></html>\n"
}

fn class(way: Way) -> &'static str {
    match way {
        Way::Local | Way::LocalCold => "local",
        Way::Stargz | Way::Soci | Way::Nydus => "rival",
        way if way.is_lazy() => "ours",
        _ => "plain",
    }
}

fn section(out: &mut String, report: &Report, image: &ImageFigures) {
    let name = &image.name;
    let _ = write!(
        out,
        "<h2>{}</h2>\n<p>{}: {} layers, {} MB compressed; ready is {}.</p>\n",
        escape(name),
        escape(&image.reference),
        image.layers,
        table::megabytes(Some(image.compressed_bytes as f64)),
        escape(&image.ready),
    );
    let ways: Vec<Way> = report
        .ways()
        .into_iter()
        .filter(|w| report.of(name, *w).next().is_some())
        .collect();
    let times: Vec<Bar> = ways.iter().map(|way| time_bar(report, name, *way)).collect();
    let goal = report.goal_ms(name).map(|ms| (ms, "1.25 x unpacked + 0.15 s"));
    let _ = write!(out, "<h3>Seconds until ready</h3>\n{}\n", svg::bars(&times, goal));
    let bytes: Vec<Bar> = ways
        .iter()
        .filter(|w| !matches!(w, Way::Local | Way::LocalCold))
        .map(|way| byte_bar(report, name, *way))
        .collect();
    let _ = write!(
        out,
        "<h3>Megabytes to the node until ready</h3>\n{}\n",
        svg::bars(&bytes, None)
    );
    let sources: Vec<Bar> = ways.iter().filter_map(|way| source_bar(report, name, *way)).collect();
    if !sources.is_empty() {
        let _ = write!(
            out,
            "<h3>Megabytes of chunks by where they were from, until ready</h3>\n<p>{}</p>\n{}\n",
            legend(),
            svg::bars(&sources, None)
        );
    }
    for way in &ways {
        let Some(timeline) = report.of(name, *way).find_map(|s| s.timeline.as_ref()) else {
            continue;
        };
        // The one that the project is about stands open.
        let is_open = if *way == Way::LazySecond { " open=\"open\"" } else { "" };
        let _ = write!(
            out,
            "<details{is_open}><summary>One start: {}</summary>\n{}\n</details>\n",
            escape(way.title()),
            svg::timeline(timeline)
        );
    }
    singles(out, report, name, &ways);
}

fn time_bar(report: &Report, image: &str, way: Way) -> Bar {
    let m = |f: fn(&Sample) -> f64| report.median(image, way, f).unwrap_or(0.0);
    let (total, pull) = (m(|s| s.total_ms), m(|s| s.pull_ms));
    let range = report.of(image, way).map(|s| s.total_ms);
    let range = range.fold((f64::INFINITY, 0.0_f64), |(low, high), v| (low.min(v), high.max(v)));
    // The parts of medians need not add up to the median of totals; the bar ends at the latter.
    let pull = pull.min(total);
    Bar {
        label: way.title().to_owned(),
        class: class(way),
        parts: vec![(pull, "pull"), (total - pull, "run")],
        range: Some(range),
        value: format!("{} s", table::seconds(Some(total))),
        hint: format!(
            "{}: pull {} s, create to ready {} s, total {} s",
            way.title(),
            table::seconds(Some(m(|s| s.pull_ms))),
            table::seconds(Some(m(|s| s.ready_ms))),
            table::seconds(Some(total))
        ),
    }
}

fn byte_bar(report: &Report, image: &str, way: Way) -> Bar {
    let bytes = report.median(image, way, |s| s.node_bytes as f64).unwrap_or(0.0);
    Bar {
        label: way.title().to_owned(),
        class: class(way),
        parts: vec![(bytes, "run")],
        range: None,
        value: format!("{} MB", table::megabytes(Some(bytes))),
        hint: way.title().to_owned(),
    }
}

/// Of the parts of a bar of sources, in the order of [`Sources::named`].
const SOURCE_CLASSES: [&str; 6] = ["f0", "f1", "f2", "f3", "f4", "f5"];

fn legend() -> String {
    let names = Sources::default().named().into_iter().zip(SOURCE_CLASSES);
    let each = names.map(|((name, _), class)| {
        format!(
            "<svg class=\"key\" viewBox=\"0 0 10 10\"><rect class=\"{class}\" width=\"10\" height=\"10\"/></svg> {name}"
        )
    });
    each.collect::<Vec<_>>().join(" ")
}

fn source_bar(report: &Report, image: &str, way: Way) -> Option<Bar> {
    let parts = report.sources(image, way)?;
    let all: f64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let told = table::sources(report, image, way)?;
    Some(Bar {
        label: way.title().to_owned(),
        class: "source",
        parts: parts
            .iter()
            .zip(SOURCE_CLASSES)
            .map(|((_, bytes), class)| (*bytes, class))
            .collect(),
        range: None,
        value: format!("{} MB", table::megabytes(Some(all))),
        hint: format!("{}, MB: {told}", way.title()),
    })
}

fn singles(out: &mut String, report: &Report, image: &str, ways: &[Way]) {
    out.push_str(
        "<details><summary>Every start</summary><table><tr><th>start</th><th>round</th><th>pull s</th>\
         <th>create to ready s</th><th>total s</th><th>2nd start s</th><th>to the node MB</th><th>upstream MB</th>\
         <th>load</th></tr>\n",
    );
    for sample in ways.iter().flat_map(|way| report.of(image, *way)) {
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td></tr>",
            escape(sample.way.title()),
            sample.round,
            table::seconds(Some(sample.pull_ms)),
            table::seconds(Some(sample.ready_ms)),
            table::seconds(Some(sample.total_ms)),
            table::seconds(sample.second_ms),
            table::megabytes(Some(sample.node_bytes as f64)),
            table::megabytes(Some(sample.upstream_bytes as f64)),
            sample.load_average,
        );
    }
    out.push_str("</table></details>\n");
}

#[cfg(test)]
mod tests {
    use super::super::timeline::{Moment, Series, Timeline};
    use super::*;

    fn report() -> Report {
        let sample = |way, ms: f64| Sample {
            image: "a<b".to_owned(),
            way,
            round: 1,
            pull_ms: ms,
            ready_ms: ms,
            total_ms: 2.0 * ms,
            second_ms: None,
            node_bytes: 7_000_000,
            read_bytes: Some(1_000_000),
            sources: (way == Way::LazySecond).then(|| Sources {
                prefetched: 3_000_000,
                on_demand: 1_000_000,
                ..Sources::default()
            }),
            upstream_bytes: 0,
            full_read_ms: None,
            declined: 0,
            load_average: 1.0,
            cpu_busy: 0.5,
            timeline: Some(Timeline {
                moments: vec![Moment {
                    name: "ready",
                    ms: 2.0 * ms,
                }],
                series: vec![Series {
                    source: "a & b",
                    points: vec![(1.0, 10), (5.0, 7_000_000)],
                }],
            }),
        };
        Report {
            rounds: 2,
            images: vec![ImageFigures {
                name: "a<b".to_owned(),
                reference: "\"quoted\" & more".to_owned(),
                ..ImageFigures::default()
            }],
            samples: vec![
                sample(Way::Local, 90.0),
                sample(Way::LazySecond, 100.0),
                sample(Way::Soci, 800.0),
            ],
            absent: vec![(Way::Nydus, "<no>".to_owned())],
            ..Report::default()
        }
    }

    /// Every element that begins ends, in order; attributes are quoted; no bare `<` or `&`.
    fn check_well_formed(html: &str) {
        let mut open: Vec<String> = Vec::new();
        let body = html.strip_prefix("<!DOCTYPE html>").expect("a doctype");
        let mut rest = body;
        while let Some(at) = rest.find('<') {
            for (i, _) in rest[..at].match_indices('&') {
                let entity: String = rest[i..at].chars().take_while(|c| *c != ';').collect();
                assert!(["&amp", "&lt", "&gt", "&quot"].contains(&entity.as_str()), "{entity}");
            }
            let end = rest[at..].find('>').expect("a tag ends") + at;
            let tag = &rest[at + 1..end];
            rest = &rest[end + 1..];
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            assert!(!tag.contains('<'), "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().unwrap_or_default().to_owned());
            }
        }
        assert_eq!(open, Vec::<String>::new());
    }

    #[test]
    fn the_page_is_well_formed_and_needs_nothing_else() {
        let html = html(&report());
        check_well_formed(&html);
        for outside in [
            "http:", "https:", "src=", "href=", "url(", "@import", "<script", "<link", "//",
        ] {
            assert!(!html.contains(outside), "{outside}");
        }
        for inside in [
            "a&lt;b",
            "&quot;quoted&quot; &amp; more",
            "&lt;no&gt;",
            "class=\"mark\"",
        ] {
            assert!(html.contains(inside), "{inside}");
        }
        for inside in ["f0\" x=", "MB: prefetched 3.0, on demand 1.0, copied", ">4.0 MB<"] {
            assert!(html.contains(inside), "{inside}");
        }
        // Times, bytes, sources with a key for each, and three timelines.
        assert_eq!(html.matches("<svg").count(), 3 + SOURCE_CLASSES.len() + 3);
    }

    #[test]
    #[should_panic]
    fn the_check_sees_an_open_element() {
        check_well_formed("<!DOCTYPE html><html><p></html>");
    }
}
