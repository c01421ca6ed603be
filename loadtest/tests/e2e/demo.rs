//! The README's first command, as it runs the program: its table and its page.

use headstart_loadtest::{coldstart::Way, playground::site::Site};

use crate::support::with_lab;

#[test]
fn the_demo_prints_first_and_second_starts_and_writes_a_page_with_plots() {
    with_lab(|turn| async move {
        // Its own lab is the program's; this one's place in the queue is what is wanted here.
        let site = Site::of_this_executable().unwrap();
        let page = turn.lab.work.path().join("demo.html");
        let mut demo = tokio::process::Command::new(site.profile_dir.join("headstart-loadtest"));
        demo.args(["playground", "--rounds", "1", "--html"]).arg(&page);
        let output = demo.kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let (head, rows) = said.split_once("|---").unwrap();
        assert!(head.contains("2nd start s"), "{said}");
        for way in [
            "ordinary pull, warm proxy",
            "lazy, warm proxy, second node",
            "lazy, cold proxy",
        ] {
            let row = rows.lines().find(|line| line.contains(way));
            let cells: Vec<&str> = row.unwrap_or_default().split('|').map(str::trim).collect();
            // Pull, create to ready, total: seconds.
            let seconds = cells.iter().skip(2).take(3).map(|cell| cell.parse::<f64>());
            assert!(
                seconds.clone().count() == 3 && seconds.into_iter().all(|s| s.is_ok()),
                "{way}: {said}"
            );
        }
        for rival in Way::RIVALS {
            assert!(said.contains(&format!("Not measured: {}: ", rival.title())), "{said}");
        }
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.matches("<svg").count() >= 2, "bars, and a timeline");
    });
}
