//! A report as Markdown.

use super::report::{Document, Table, Value};

pub(super) fn markdown(document: &Document) -> String {
    let mut text = format!("# {}\n\n", document.title);
    if !document.question.is_empty() {
        text.push_str(&format!("{}\n\n", document.question));
    }
    for (name, value) in &document.facts {
        text.push_str(&format!("- {name}: {value}\n"));
    }
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n", section.heading));
        for paragraph in &section.text {
            text.push_str(&format!("\n{paragraph}\n"));
        }
        for table in &section.tables {
            text.push_str(&format!("\n{}", table_text(table)));
        }
        for figure in &section.figures {
            text.push_str(&format!("\n![{}](charts/{})\n", figure.title, figure.file));
        }
    }
    text
}

fn table_text(table: &Table) -> String {
    let mut text = String::new();
    if !table.caption.is_empty() {
        text.push_str(&format!("### {}\n\n", table.caption));
    }
    // Nothing in a cell may end it.
    let escaped = |text: &str| text.replace('|', "\\|");
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    text.push_str(&line(table.header.iter().map(|cell| escaped(cell)).collect()));
    text.push_str(&format!("|{}\n", "---|".repeat(table.header.len())));
    for row in &table.rows {
        let value = |value: &Value| match (value.is_decided, escaped(&value.text)) {
            (true, text) => format!("**{text}**"),
            (false, text) => text,
        };
        text.push_str(&line(row.iter().map(value).collect()));
    }
    text
}
