//! A report as Markdown.

use super::report::{Document, Table, Value};

pub(super) fn markdown(document: &Document) -> String {
    let mut text = format!("# {}\n\n", escaped(&document.title));
    if !document.question.is_empty() {
        text.push_str(&format!("{}\n\n", escaped(&document.question)));
    }
    for (name, value) in &document.facts {
        text.push_str(&format!("- {}: {}\n", escaped(name), escaped(value)));
    }
    for section in &document.sections {
        text.push_str(&format!("\n## {}\n", escaped(&section.heading)));
        for paragraph in &section.text {
            text.push_str(&format!("\n{}\n", escaped(paragraph)));
        }
        for table in &section.tables {
            text.push_str(&format!("\n{}", table_text(table)));
        }
        for figure in &section.figures {
            text.push_str(&format!("\n![{}](charts/{})\n", escaped(&figure.title), figure.file));
        }
    }
    text
}

/// What Markdown shows as this text, in one line: it ends no cell and is no markup.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\n' | '\r' => escaped.push(' '),
            '\\' | '*' | '<' | '`' | '|' => escaped.extend(['\\', character]),
            _ => escaped.push(character),
        }
    }
    escaped
}

fn table_text(table: &Table) -> String {
    let mut text = String::new();
    if !table.caption.is_empty() {
        text.push_str(&format!("### {}\n\n", escaped(&table.caption)));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shown_as_they_are_and_stay_in_their_cells() {
        assert_eq!(escaped("a|b <i>*c*\n`d` \\"), r"a\|b \<i>\*c\* \`d\` \\");
        assert_eq!(escaped("p = I, g = 1 [−0.1, 0.2]"), "p = I, g = 1 [−0.1, 0.2]");
        let table = Table {
            caption: String::new(),
            header: vec!["x\ny".into(), "|".into()],
            rows: vec![vec![
                Value { text: "**".into(), is_decided: true },
                Value { text: "1".into(), is_decided: false },
            ]],
        };
        assert_eq!(table_text(&table), "| x y | \\| |\n|---|---|\n| **\\*\\*** | 1 |\n");
    }
}
