//! The benches' reports (`--json`) as panels.

use anyhow::{Context, bail};
use serde_json::Value;

use super::chart::{Bar, Chart, Panel};

/// The bench that a report is of.
///
/// # Errors
/// Not a report.
pub fn bench(report: &Value) -> anyhow::Result<&str> {
    report["bench"]
        .as_str()
        .context("it is no report of a bench")
}

/// A report's picture.
///
/// # Errors
/// A report that has none, or is not what its bench writes.
pub fn chart(report: &Value) -> anyhow::Result<Chart> {
    let (title, panels) = match bench(report)? {
        "blk" => (
            "A disk over vhost-user and its peers: one client, one processor",
            blk(report)?,
        ),
        "rng" => ("A source of entropy over vhost-user", rng(report)?),
        "memory" => ("Resident size of xen-dm, MiB", memory(report)?),
        "lab-blk" => (
            "A Xen guest's disk (emulated): microseconds per request, less is better",
            lab(report, "kind", &["way"])?,
        ),
        other => bail!("'{other}' has no picture"),
    };
    let mut notes = vec![machine(&report["machine"])];
    let versions = ["xen_dm", "peer"]
        .iter()
        .filter_map(|key| report[key].as_str());
    let versions: Vec<_> = versions.collect();
    if !versions.is_empty() {
        notes.push(versions.join(" beside "));
    }
    Ok(Chart {
        title: title.to_owned(),
        notes,
        panels,
    })
}

fn machine(machine: &Value) -> String {
    format!(
        "{} × {}, Linux {}, load {}; medians",
        machine["processors"],
        machine["processor"].as_str().unwrap_or("?"),
        machine["kernel"].as_str().unwrap_or("?"),
        machine["load"],
    )
}

fn rows(report: &Value) -> anyhow::Result<&Vec<Value>> {
    report["rows"].as_array().context("it has no rows")
}

fn text<'a>(row: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    row[key]
        .as_str()
        .with_context(|| format!("a row without {key}"))
}

fn median(row: &Value, key: &str) -> anyhow::Result<f64> {
    median_if_any(row, key).with_context(|| format!("a row without a median of {key}"))
}

fn median_if_any(row: &Value, key: &str) -> Option<f64> {
    row.get(key)?.get("median")?.as_f64()
}

/// Adds a bar to the panel of its title; panels stay in the order of their rows.
fn add(panels: &mut Vec<Panel>, title: &str, bar: Bar) {
    match panels.iter_mut().find(|panel| panel.title == title) {
        Some(panel) => panel.bars.push(bar),
        None => panels.push(Panel {
            title: title.to_owned(),
            bars: vec![bar],
        }),
    }
}

fn blk(report: &Value) -> anyhow::Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for row in rows(report)? {
        let contender = text(row, "contender")?;
        let iops = median(row, "iops")?;
        let large = row.pointer("/workload/bytes").and_then(Value::as_u64) > Some(4096);
        let said = match large {
            true => format!("{:.1} GiB/s", median(row, "mib_per_second")? / 1024.0),
            false => format!("{:.0} k/s", iops / 1e3),
        };
        let cpu =
            median_if_any(row, "cpu_us").map_or(String::new(), |cpu| format!(", {cpu:.2} µs"));
        let bar = Bar {
            label: match contender {
                "xen_dm" => "xen-dm".to_owned(),
                "raw" => "raw file".to_owned(),
                other => format!("qemu-s-d {}", other.replace('_', "-")),
            },
            value: iops,
            text: format!("{said}{cpu}"),
            ours: contender == "xen_dm",
        };
        add(&mut panels, text(row, "name")?, bar);
    }
    Ok(panels)
}

fn rng(report: &Value) -> anyhow::Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for row in rows(report)? {
        for (key, label) in [("xen_dm", "xen-dm"), ("peer", "vhost-device-rng")] {
            let value = median(row, key)?;
            let bar = Bar {
                label: label.to_owned(),
                value,
                text: format!("{value:.1} MiB/s"),
                ours: key == "xen_dm",
            };
            add(&mut panels, text(row, "name")?, bar);
        }
    }
    Ok(panels)
}

fn memory(report: &Value) -> anyhow::Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for row in rows(report)? {
        let kib = |key: &str| {
            row[key]
                .as_f64()
                .with_context(|| format!("a row without {key}"))
        };
        let value = (kib("anonymous")? + kib("program")?) / 1024.0;
        let (guests, disks, queues) = (&row["guests"], kib("disks")?, kib("queues")?);
        let (title, label) = match row["nic"].as_bool() {
            Some(true) => (
                "two disks and a network card each",
                format!("{guests} guests"),
            ),
            _ => (
                "one guest, four disks",
                format!("{} queues", disks * queues),
            ),
        };
        let bar = Bar {
            label,
            value,
            text: format!("{value:.1}"),
            ours: true,
        };
        add(&mut panels, title, bar);
    }
    Ok(panels)
}

fn lab(report: &Value, title: &str, labels: &[&str]) -> anyhow::Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for row in rows(report)? {
        let words = labels.iter().map(|label| text(row, label));
        let words = words.collect::<anyhow::Result<Vec<_>>>()?;
        let value = median(row, "took")?;
        let bar = Bar {
            label: words.join(" "),
            value,
            text: format!("{value:.0} µs"),
            ours: true,
        };
        add(&mut panels, text(row, title)?, bar);
    }
    Ok(panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_workload_share_a_panel() {
        let row = |name: &str, contender: &str, iops: f64| {
            serde_json::json!({
                "name": name, "contender": contender, "workload": {"bytes": 4096},
                "iops": {"median": iops}, "cpu_us": {"median": 0.5},
            })
        };
        let rows = [
            row("one", "xen_dm", 2e6),
            row("one", "null_co", 1e6),
            row("two", "raw", 3e5),
        ];
        let report = serde_json::json!({"bench": "blk", "machine": {}, "rows": rows});

        let panels = chart(&report).unwrap().panels;

        let shape: Vec<_> = panels.iter().map(|panel| panel.bars.len()).collect();
        assert_eq!(shape, [2, 1]);
        assert_eq!(panels[0].bars[0].text, "2000 k/s, 0.50 µs");
        assert!(panels[0].bars[0].ours && !panels[0].bars[1].ours);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for report in [
            r#"{}"#,
            r#"{"bench": "other"}"#,
            r#"{"bench": "blk", "rows": [{}]}"#,
        ] {
            assert!(chart(&serde_json::from_str(report).unwrap()).is_err());
        }
    }
}
