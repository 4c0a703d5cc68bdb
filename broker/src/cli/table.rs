//! Tables that align: columns as wide as their widest cell, numbers to the right.

/// One column's heading, and to which side its cells go.
#[derive(Debug, Clone, Copy)]
pub enum Column {
    /// Text.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

/// Lays rows out under their headings, one line each, without trailing blanks.
///
/// Cells are cleaned of control characters: what a peer chose (a label, a rule's name) must not move a cursor.
pub fn layout<const N: usize>(columns: [Column; N], rows: &[[String; N]]) -> String {
    let headings = columns.map(|column| match column {
        Column::Left(heading) | Column::Right(heading) => heading.to_owned(),
    });
    let clean = |cell: &String| {
        cell.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect::<String>()
    };
    let lines: Vec<[String; N]> = std::iter::once(headings)
        .chain(rows.iter().map(|row| row.each_ref().map(clean)))
        .collect();
    let mut widths = [0; N];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells = line
            .iter()
            .zip(widths)
            .zip(columns)
            .map(|((cell, width), column)| match column {
                Column::Left(_) => format!("{cell:<width$}"),
                Column::Right(_) => format!("{cell:>width$}"),
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align() {
        let rows = [
            ["veth0:2".to_owned(), "12".to_owned(), "a".to_owned()],
            ["v:1".to_owned(), "3".to_owned(), "b\n\u{1b}c".to_owned()],
        ];
        let text = layout(
            [Column::Left("QUEUE"), Column::Right("N"), Column::Left("RULE")],
            &rows,
        );
        assert_eq!(text, "QUEUE     N  RULE\nveth0:2  12  a\nv:1       3  b??c\n");
    }
}
