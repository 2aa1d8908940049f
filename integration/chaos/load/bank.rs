//! Money moved between accounts, and all of it counted.

use rand::RngExt as _;
use rand::seq::IteratorRandom as _;

use super::client::Client;
use super::{ACCOUNTS, Histories, PAUSE};
use crate::check::Outcome;
use crate::check::bank::{Sum, Transfer};

pub(super) async fn moves(mut client: Client) -> Histories {
    let mut done = Histories::default();
    while !client.scene.ended() {
        tokio::time::sleep(PAUSE).await;
        if client.begin().await.is_none() {
            continue;
        }
        let (pair, amount) = {
            let mut random = rand::rng();
            ((1..=ACCOUNTS).sample(&mut random, 2), random.random_range(1..=20))
        };
        let [from, to] = pair[..] else { continue };
        let (round, token) = (client.scene.round, client.scene.token());
        let change = |account: i32, amount: i64| {
            format!(
                "UPDATE accounts SET balance = balance + {amount} WHERE round = {round} AND account = {account}"
            )
        };
        let mut changes = [(from, -amount), (to, amount)];
        // Always the lower one first, so that no two wait for each other.
        changes.sort_unstable();
        let mut statements = changes.map(|(account, amount)| change(account, amount)).to_vec();
        statements.push(format!("INSERT INTO transfers VALUES ({round}, {token})"));
        let (_, outcome) = client.block("BEGIN", &statements).await;
        client.scene.heard(client.number, &outcome);
        if outcome == Outcome::Acknowledged {
            done.acknowledged.push(client.scene.now());
        }
        done.transfers.push(Transfer { token, from, to, amount, outcome });
    }
    done
}

/// One statement is one snapshot, of whichever node answers.
pub(super) async fn sums(mut client: Client) -> Histories {
    let mut done = Histories::default();
    let sql = format!("SELECT sum(balance), count(*) FROM accounts WHERE round = {}", client.scene.round);
    while !client.scene.ended() {
        tokio::time::sleep(PAUSE).await;
        if client.begin().await.is_none() {
            continue;
        }
        let at = client.scene.now();
        let Ok(rows) = client.run(&sql).await else { continue };
        let numbers: Option<Vec<i64>> = rows
            .concat()
            .iter()
            .map(|number| if number.is_empty() { Some(0) } else { number.parse().ok() })
            .collect();
        // A standby that has not replayed the round's begin has no accounts.
        if let Some([total, accounts]) = numbers.as_deref()
            && *accounts > 0
        {
            done.sums.push(Sum { at, total: *total });
        }
    }
    done
}
