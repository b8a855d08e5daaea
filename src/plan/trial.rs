//! A run of a canary: what is to be tried next, and what the answers amount to.
//!
//! First nobody's and each good certificate are shown at each endpoint, until they are treated as they
//! should be. Then the certificates are revoked, and shown at each endpoint that accepted them until they
//! are refused there.

use std::time::Duration;

use crate::api::canary::Reason;
use crate::api::trust::Mode;

/// As many refusals in a row count as being refused: a data plane may have several processes, each of
/// which loads the CRL by itself.
const REFUSALS: u32 = 3;
/// Between two attempts, as long as each moment counts.
const SHORT_PAUSE: Duration = Duration::from_millis(250);
/// Between two attempts after a while.
const LONG_PAUSE: Duration = Duration::from_secs(1);
/// After this time the pauses are long.
const HURRY: Duration = Duration::from_secs(10);

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was let in: the handshake succeeded, and the HTTP status does not say otherwise.
    Accepted(u16),
    /// Its certificate was refused, by an alert or an HTTP status; how, in words.
    Refused(String),
    /// Neither can be told; why.
    Neither(Reason, String),
}

impl Answer {
    /// What an HTTP status says of the client.
    ///
    /// nginx answers 400, HAProxy Ingress 495 and 496, gates and data planes that match identities 401 and
    /// 403. Of a server's own trouble, a host that it does not serve there (421) and too many requests (429)
    /// nothing follows.
    pub fn of_status(status: u16) -> Self {
        match status {
            400 | 401 | 403 | 495 | 496 => Self::Refused(format!("HTTP {status}")),
            421 | 429 | 500.. => Self::Neither(Reason::Unreachable, format!("HTTP {status}")),
            _ => Self::Accepted(status),
        }
    }
}

/// One thing to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Number of the trial.
    pub trial: usize,
    /// Number of the endpoint.
    pub endpoint: usize,
    /// Number of the authority whose certificate is shown; none to show no certificate.
    pub client: Option<usize>,
}

/// What is to be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make these attempts, at once.
    Try(Vec<Attempt>),
    /// Revoke the certificates; then tell by [`Run::revoked`].
    Revoke,
    /// The run is over.
    Finished,
}

/// What a trial amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Number of the endpoint.
    pub endpoint: usize,
    /// Number of the authority; none for the client without certificate.
    pub client: Option<usize>,
    /// `Passed`, or what went wrong.
    pub reason: Reason,
    /// What was seen, when it went wrong.
    pub seen: String,
    /// How long after the revocation the client was refused, when it was.
    pub refused_after: Option<Duration>,
}

/// A run under way. Times are counted from the beginning of the stage: of the run, then of the revocation.
#[derive(Clone, Debug)]
pub struct Run {
    mode: Mode,
    timeout: Duration,
    revoked: bool,
    trials: Vec<Trial>,
}

#[derive(Clone, Debug)]
struct Trial {
    endpoint: usize,
    client: Option<usize>,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    /// Not yet treated as it should be; the last answer.
    Open(Option<Answer>),
    /// A good client was accepted.
    Accepted,
    /// A revoked client is being tried.
    Refusing {
        times: u32,
        first: Duration,
        last: Option<Answer>,
    },
    Done(Reason, String, Option<Duration>),
}

impl Run {
    /// A run at so many endpoints with a certificate of each of so many authorities.
    pub fn new(mode: Mode, timeout: Duration, endpoints: usize, authorities: usize) -> Self {
        let clients = || std::iter::once(None).chain((0..authorities).map(Some));
        let trials = (0..endpoints).flat_map(|endpoint| {
            let state = State::Open(None);
            clients().map(move |client| Trial { endpoint, client, state: state.clone() })
        });
        Self { mode, timeout, revoked: false, trials: trials.collect() }
    }

    /// Takes an answer in.
    pub fn answered(&mut self, attempt: Attempt, answer: Answer, elapsed: Duration) {
        let wanted = self.wanted(attempt.client);
        let trial = &mut self.trials[attempt.trial];
        trial.state = match (std::mem::replace(&mut trial.state, State::Open(None)), answer) {
            (State::Open(_), answer) if wanted(&answer) => match trial.client {
                Some(_) => State::Accepted,
                None => State::Done(Reason::Passed, String::new(), None),
            },
            (State::Open(_), answer) => State::Open(Some(answer)),
            (State::Refusing { times, first, .. }, answer @ Answer::Refused(_)) => {
                let first = if times == 0 { elapsed } else { first };
                if times + 1 >= REFUSALS {
                    State::Done(Reason::Passed, String::new(), Some(first))
                } else {
                    State::Refusing { times: times + 1, first, last: Some(answer) }
                }
            }
            (State::Refusing { .. }, answer) => {
                State::Refusing { times: 0, first: Duration::ZERO, last: Some(answer) }
            }
            (state, _) => state,
        };
    }

    /// How a client is treated that is not revoked.
    fn wanted(&self, client: Option<usize>) -> fn(&Answer) -> bool {
        if client.is_none() && self.mode == Mode::Required {
            |answer| matches!(answer, Answer::Refused(_))
        } else {
            |answer| matches!(answer, Answer::Accepted(_))
        }
    }

    /// What is to be done, so long after the stage began.
    pub fn step(&mut self, elapsed: Duration) -> Step {
        if elapsed >= self.timeout {
            self.give_up();
        }
        let pending = |state: &State| matches!(state, State::Open(_) | State::Refusing { .. });
        let trials = self.trials.iter().enumerate().filter(|(_, trial)| pending(&trial.state));
        let attempts: Vec<_> = trials
            .map(|(number, Trial { endpoint, client, .. })| Attempt {
                trial: number,
                endpoint: *endpoint,
                client: *client,
            })
            .collect();
        match attempts.is_empty() {
            false => Step::Try(attempts),
            // Nobody let them in: nothing is learned from their revocation, and they must die all the same.
            true if !self.revoked => Step::Revoke,
            true => Step::Finished,
        }
    }

    /// The certificates are revoked: from now on they must be refused.
    pub fn revoked(&mut self) {
        self.revoked = true;
        for trial in &mut self.trials {
            if matches!(trial.state, State::Accepted) {
                trial.state = State::Refusing { times: 0, first: Duration::ZERO, last: None };
            }
        }
    }

    /// The time is over. Only refusals that have begun are seen to their end.
    fn give_up(&mut self) {
        let (mode, timeout) = (self.mode, self.timeout);
        for trial in &mut self.trials {
            let (reason, seen) = match &trial.state {
                State::Open(answer) => failure(mode, trial.client, answer.as_ref()),
                State::Refusing { times: 0, last, .. } => {
                    let (reason, seen) = match last {
                        Some(Answer::Neither(reason, why)) => (*reason, why.clone()),
                        Some(Answer::Accepted(status)) => {
                            let seen = format!("HTTP {status} {} s later", timeout.as_secs());
                            (Reason::RevokedClientAccepted, seen)
                        }
                        Some(Answer::Refused(_)) | None => {
                            (Reason::Unreachable, "it was not tried in time".to_owned())
                        }
                    };
                    (reason, seen)
                }
                _ => continue,
            };
            trial.state = State::Done(reason, seen, None);
        }
    }

    /// How long to wait before the next attempts.
    pub fn pause(&self, elapsed: Duration) -> Duration {
        if elapsed < HURRY { SHORT_PAUSE } else { LONG_PAUSE }
    }

    /// What the trials amount to, when the run is over.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let trials = self.trials.iter().filter_map(|trial| {
            let State::Done(reason, seen, refused_after) = &trial.state else { return None };
            Some(Outcome {
                endpoint: trial.endpoint,
                client: trial.client,
                reason: *reason,
                seen: seen.clone(),
                refused_after: *refused_after,
            })
        });
        trials.collect()
    }
}

/// What is wrong when a client that is not revoked was answered so to the last.
fn failure(mode: Mode, client: Option<usize>, answer: Option<&Answer>) -> (Reason, String) {
    let reason = match (client, mode) {
        (Some(_), _) => Reason::GoodClientRefused,
        (None, Mode::Required) => Reason::AnonymousClientAccepted,
        (None, Mode::Optional) => Reason::AnonymousClientRefused,
    };
    match answer {
        Some(Answer::Accepted(status)) => (reason, format!("HTTP {status}")),
        Some(Answer::Refused(how)) => (reason, how.clone()),
        Some(Answer::Neither(reason, why)) => (*reason, why.clone()),
        None => (Reason::Unreachable, "it was not tried in time".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refused() -> Answer {
        Answer::Refused("HTTP 400".into())
    }

    fn down() -> Answer {
        Answer::Neither(Reason::Unreachable, "connection refused".into())
    }

    /// Runs to the end, one second for each round of attempts. `answer` is told the attempt, whether the
    /// certificates are revoked, and the second of the stage.
    fn run(
        mode: Mode,
        authorities: usize,
        answer: impl Fn(Attempt, bool, u64) -> Answer,
    ) -> Vec<Outcome> {
        let mut run = Run::new(mode, TIMEOUT, 1, authorities);
        let (mut second, mut revoked) = (0, 0);
        for _ in 0..1000 {
            match run.step(seconds(second)) {
                Step::Try(attempts) => {
                    assert!(!attempts.is_empty());
                    for attempt in attempts {
                        let answer = answer(attempt, revoked > 0, second);
                        run.answered(attempt, answer, seconds(second));
                    }
                    second += 1;
                }
                Step::Revoke => {
                    revoked += 1;
                    second = 0;
                    run.revoked();
                }
                Step::Finished => {
                    assert_eq!(revoked, 1, "certificates are revoked, once");
                    let outcomes = run.outcomes();
                    assert_eq!(outcomes.len(), authorities + 1, "each trial has an outcome");
                    return outcomes;
                }
            }
        }
        panic!("the run does not end");
    }

    /// A server that takes the CRL in after so many seconds.
    fn good_server(delay: u64) -> impl Fn(Attempt, bool, u64) -> Answer {
        move |attempt, revoked, second| match attempt.client {
            Some(_) if !(revoked && second >= delay) => Answer::Accepted(200),
            _ => refused(),
        }
    }

    fn reasons(outcomes: &[Outcome]) -> Vec<Reason> {
        outcomes.iter().map(|outcome| outcome.reason).collect()
    }

    #[test]
    fn a_good_server_passes_and_the_time_until_the_refusal_is_told() {
        let outcomes = run(Mode::Required, 2, good_server(7));
        assert_eq!(reasons(&outcomes), [Reason::Passed; 3]);
        let after: Vec<_> = outcomes.iter().map(|outcome| outcome.refused_after).collect();
        assert_eq!(after, [None, Some(seconds(7)), Some(seconds(7))]);
    }

    #[test]
    fn a_server_that_loads_no_crl_is_found_out() {
        let outcomes = run(Mode::Required, 1, good_server(1000));
        assert_eq!(reasons(&outcomes), [Reason::Passed, Reason::RevokedClientAccepted]);
        assert_eq!(outcomes[1].seen, "HTTP 200 30 s later");
    }

    #[test]
    fn one_process_that_accepts_the_revoked_still_keeps_it_from_passing() {
        // Of two processes behind one address one never loads the CRL.
        let outcomes = run(Mode::Required, 1, |attempt, revoked, second| match attempt.client {
            Some(_) if revoked && second % 2 == 0 => refused(),
            Some(_) => Answer::Accepted(200),
            None => refused(),
        });
        assert_eq!(reasons(&outcomes), [Reason::Passed, Reason::RevokedClientAccepted]);
    }

    #[test]
    fn a_server_that_is_away_refuses_nobody() {
        let outcomes = run(Mode::Required, 1, |attempt, revoked, _| match attempt.client {
            Some(_) if revoked => down(),
            Some(_) => Answer::Accepted(200),
            None => refused(),
        });
        assert_eq!(reasons(&outcomes), [Reason::Passed, Reason::Unreachable]);
        let outcomes = run(Mode::Required, 1, |_, _, _| down());
        assert_eq!(reasons(&outcomes), [Reason::Unreachable; 2]);
        assert_eq!(outcomes[0].seen, "connection refused");
    }

    #[test]
    fn a_server_that_was_away_for_a_moment_passes() {
        let outcomes = run(Mode::Required, 1, |attempt, revoked, second| match second {
            3..6 => down(),
            _ => good_server(2)(attempt, revoked, second),
        });
        assert_eq!(reasons(&outcomes), [Reason::Passed; 2]);
        // Refused at 2 s, then not to be told from a refusal until 6 s.
        assert_eq!(outcomes[1].refused_after, Some(seconds(6)));
    }

    #[test]
    fn a_refusal_at_the_last_moment_is_seen_to_its_end() {
        let outcomes = run(Mode::Required, 1, good_server(29));
        assert_eq!(outcomes[1].refused_after, Some(seconds(29)));
        assert_eq!(
            reasons(&run(Mode::Required, 1, good_server(30)))[1],
            Reason::RevokedClientAccepted
        );
    }

    #[test]
    fn good_clients_and_those_without_certificate_are_treated_as_the_mode_says() {
        let everybody = |_, _, _| Answer::Accepted(200);
        let nobody = |_, _, _| refused();
        for (mode, answer, expected) in [
            (
                Mode::Required,
                &everybody as &dyn Fn(Attempt, bool, u64) -> Answer,
                [Reason::AnonymousClientAccepted, Reason::RevokedClientAccepted],
            ),
            (Mode::Optional, &everybody, [Reason::Passed, Reason::RevokedClientAccepted]),
            (Mode::Required, &nobody, [Reason::Passed, Reason::GoodClientRefused]),
            (Mode::Optional, &nobody, [Reason::AnonymousClientRefused, Reason::GoodClientRefused]),
        ] {
            assert_eq!(reasons(&run(mode, 1, answer)), expected, "{mode:?}");
        }
    }

    #[test]
    fn what_one_authoritys_client_meets_says_nothing_of_anothers() {
        let outcomes = run(Mode::Required, 2, |attempt, revoked, second| match attempt.client {
            Some(1) => refused(),
            _ => good_server(1)(attempt, revoked, second),
        });
        let expected = [Reason::Passed, Reason::Passed, Reason::GoodClientRefused];
        assert_eq!(reasons(&outcomes), expected);
    }

    #[test]
    fn an_http_status_says_who_is_let_in() {
        for status in [200, 204, 302, 404, 405] {
            assert_eq!(Answer::of_status(status), Answer::Accepted(status));
        }
        for status in [400, 401, 403, 495, 496] {
            assert!(matches!(Answer::of_status(status), Answer::Refused(_)), "{status}");
        }
        // A gate that is down makes Traefik answer 500 to everybody.
        for status in [421, 429, 500, 502, 503, 599, 999] {
            assert!(matches!(Answer::of_status(status), Answer::Neither(..)), "{status}");
        }
    }
}
