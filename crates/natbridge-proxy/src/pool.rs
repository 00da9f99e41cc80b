//! Who may hold the places that the holder has for connections or sessions.
//!
//! As long as there are places, anybody has one for as long as it likes: nothing is cut off that the
//! kernel alone would let be. When all are taken, a newcomer gets the place of who has been idle for
//! longest among the greediest: of a client over its share, else of a port over its share, else of the
//! client that holds most. So no client and no port can keep the others out.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::protocol::PoolState;

/// Under pressure a client may hold one of so many places, a port one of so many.
const CLIENT_SHARE: usize = 8;
const PORT_SHARE: usize = 2;
/// Who was active within this is idle to nobody, unless it is over its share.
const PAUSE: Duration = Duration::from_secs(10);

/// Whom a place is counted for: an IPv4 address or an IPv6 /64, which is what one host has (RFC 6177).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) if !address.is_loopback() => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            address => address,
        })
    }
}

/// A binding, by a number of its own.
pub type Port = u64;

/// A place that is held; given back on drop.
pub struct Place {
    pool: Rc<Pool>,
    id: u64,
    last: Rc<Cell<Instant>>,
    evicted: Rc<Notify>,
}

impl Place {
    /// Something was carried.
    pub fn touch(&self) {
        self.last.set(Instant::now());
    }

    /// When something was carried last.
    pub fn last(&self) -> Instant {
        self.last.get()
    }

    /// Waits until the place is somebody else's: its holder must go.
    pub async fn evicted(&self) {
        self.evicted.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.members.borrow_mut().remove(self.id);
    }
}

/// The places of one kind.
pub struct Pool {
    capacity: Cell<usize>,
    members: RefCell<Members>,
    evicted: Cell<u64>,
    refused: Cell<u64>,
}

impl Pool {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: Cell::new(capacity),
            members: RefCell::default(),
            evicted: Cell::new(0),
            refused: Cell::new(0),
        }
    }

    /// Another bound; what is over it goes when somebody new comes.
    pub fn resize(&self, capacity: usize) {
        self.capacity.set(capacity);
    }

    /// What `list` tells.
    pub fn state(&self) -> PoolState {
        PoolState {
            open: self.members.borrow().all.len() as u64,
            capacity: self.capacity.get() as u64,
            evicted: self.evicted.get(),
            refused: self.refused.get(),
        }
    }

    /// A place for a client of a port. `None`: all are taken by others who use them.
    pub fn enter(self: &Rc<Self>, client: Client, port: Port) -> Option<Place> {
        let mut members = self.members.borrow_mut();
        while members.all.len() >= self.capacity.get() {
            let Some(id) = members.victim(client, port, self.capacity.get()) else {
                self.refused.set(self.refused.get() + 1);
                return None;
            };
            self.evict(&mut members, id);
        }
        let last = Rc::new(Cell::new(Instant::now()));
        let evicted = Rc::new(Notify::new());
        let id = members.add(client, port, Rc::clone(&last), Rc::clone(&evicted));
        Some(Place { pool: Rc::clone(self), id, last, evicted })
    }

    /// Takes a place from the greediest: descriptors have run out before places did.
    pub fn relieve(&self) {
        let mut members = self.members.borrow_mut();
        if let Some(group) = members.greediest()
            && let Some(id) = members.longest_idle(group)
        {
            self.evict(&mut members, id);
        }
    }

    fn evict(&self, members: &mut Members, id: u64) {
        if let Some(member) = members.remove(id) {
            member.evicted.notify_one();
            self.evicted.set(self.evicted.get() + 1);
        }
    }
}

/// A client's places on one port.
type Group = (Client, Port);

struct Member {
    group: Group,
    last: Rc<Cell<Instant>>,
    evicted: Rc<Notify>,
}

#[derive(Default)]
struct Members {
    next: u64,
    all: HashMap<u64, Member>,
    /// By id, with the time it was last put in order by: the first may have been active since.
    groups: HashMap<Group, LruCache<u64, Instant>>,
    clients: Ranking<Client>,
    ports: Ranking<Port>,
    ports_of: HashMap<Client, Ranking<Port>>,
    clients_of: HashMap<Port, Ranking<Client>>,
}

impl Members {
    fn add(
        &mut self,
        client: Client,
        port: Port,
        last: Rc<Cell<Instant>>,
        evicted: Rc<Notify>,
    ) -> u64 {
        let id = self.next;
        self.next += 1;
        let group = (client, port);
        self.groups.entry(group).or_insert_with(LruCache::unbounded).put(id, last.get());
        self.all.insert(id, Member { group, last, evicted });
        self.clients.add(client);
        self.ports.add(port);
        self.ports_of.entry(client).or_default().add(port);
        self.clients_of.entry(port).or_default().add(client);
        id
    }

    fn remove(&mut self, id: u64) -> Option<Member> {
        let member = self.all.remove(&id)?;
        let (client, port) = member.group;
        if let Some(group) = self.groups.get_mut(&member.group) {
            group.pop(&id);
            if group.is_empty() {
                self.groups.remove(&member.group);
            }
        }
        self.clients.subtract(client);
        self.ports.subtract(port);
        subtract_from(&mut self.ports_of, client, port);
        subtract_from(&mut self.clients_of, port, client);
        Some(member)
    }

    /// Whose place a newcomer gets, if anybody's.
    fn victim(&mut self, client: Client, port: Port, capacity: usize) -> Option<u64> {
        let (group, over) = match self.over_share(capacity) {
            Some((group, Share::Client)) => (group, group.0 != client),
            Some((group, Share::Port)) => (group, group.1 != port),
            None => (self.greediest()?, false),
        };
        let id = self.longest_idle(group)?;
        let idle = self.all.get(&id)?.last.get().elapsed();
        (over || idle >= PAUSE).then_some(id)
    }

    /// The greediest client if it is over its share, else the greediest port's greediest client.
    fn over_share(&self, capacity: usize) -> Option<(Group, Share)> {
        let client = self.clients.greatest()?;
        if self.clients.count(client) > share(capacity, CLIENT_SHARE) {
            return Some((self.greediest()?, Share::Client));
        }
        let port = self.ports.greatest()?;
        if self.ports.count(port) > share(capacity, PORT_SHARE) {
            return Some(((self.clients_of.get(&port)?.greatest()?, port), Share::Port));
        }
        None
    }

    /// The client that holds most, on the port where it holds most.
    fn greediest(&self) -> Option<Group> {
        let client = self.clients.greatest()?;
        Some((client, self.ports_of.get(&client)?.greatest()?))
    }

    /// Who has been idle for longest in a group, nearly: those that were active since they were put in
    /// order go to the end first, once each.
    fn longest_idle(&mut self, group: Group) -> Option<u64> {
        let order = self.groups.get_mut(&group)?;
        for _ in 0..order.len() {
            let (&id, &known) = order.peek_lru()?;
            let last = self.all.get(&id)?.last.get();
            if last <= known {
                return Some(id);
            }
            order.put(id, last);
        }
        order.peek_lru().map(|(&id, _)| id)
    }
}

/// Whose share is exceeded.
enum Share {
    Client,
    Port,
}

fn share(capacity: usize, parts: usize) -> usize {
    (capacity / parts).max(1)
}

fn subtract_from<K: Eq + Hash, V: Copy + Ord + Hash>(
    rankings: &mut HashMap<K, Ranking<V>>,
    key: K,
    value: V,
) {
    if let Some(ranking) = rankings.get_mut(&key) {
        ranking.subtract(value);
        if ranking.counts.is_empty() {
            rankings.remove(&key);
        }
    }
}

/// Counts, and who has the greatest.
struct Ranking<K> {
    counts: HashMap<K, usize>,
    order: BTreeSet<(usize, K)>,
}

impl<K> Default for Ranking<K> {
    fn default() -> Self {
        Self { counts: HashMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Copy + Ord + Hash> Ranking<K> {
    fn count(&self, key: K) -> usize {
        self.counts.get(&key).copied().unwrap_or(0)
    }

    fn greatest(&self) -> Option<K> {
        self.order.last().map(|&(_, key)| key)
    }

    fn add(&mut self, key: K) {
        self.set(key, self.count(key) + 1);
    }

    fn subtract(&mut self, key: K) {
        self.set(key, self.count(key).saturating_sub(1));
    }

    fn set(&mut self, key: K, count: usize) {
        self.order.remove(&(self.count(key), key));
        if count == 0 {
            self.counts.remove(&key);
        } else {
            self.counts.insert(key, count);
            self.order.insert((count, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> Client {
        Client::from(IpAddr::from([10, 0, 0, last]))
    }

    fn is_evicted(place: &Place) -> bool {
        !place.pool.members.borrow().all.contains_key(&place.id)
    }

    /// Makes a place look as if it had been idle.
    fn idle(place: &Place, seconds: u64) {
        place.last.set(Instant::now().checked_sub(Duration::from_secs(seconds)).expect("a past"));
    }

    #[test]
    fn nobody_goes_while_there_are_places() {
        let pool = Rc::new(Pool::new(16));
        let places: Vec<_> = (0..16).map(|_| pool.enter(client(1), 80).expect("a place")).collect();
        places.iter().for_each(|place| idle(place, 3600));
        assert!(!places.iter().any(is_evicted));
        drop(places);
        assert_eq!(pool.state().open, 0);
    }

    #[test]
    fn a_client_over_its_share_makes_room_for_others_even_if_it_is_busy() {
        let pool = Rc::new(Pool::new(16));
        let greedy: Vec<_> = (0..15).map(|_| pool.enter(client(1), 80).expect("a place")).collect();
        let modest = pool.enter(client(2), 81).expect("a place");
        idle(&modest, 3600);
        greedy.iter().for_each(Place::touch);
        let others: Vec<_> =
            (3..6).map(|last| pool.enter(client(last), 82).expect("a place")).collect();
        assert_eq!(greedy.iter().filter(|place| is_evicted(place)).count(), 3);
        assert!(!is_evicted(&modest), "who is below its share keeps what it has");
        assert!(pool.enter(client(1), 83).is_none(), "its own busy ones are left to it");
        assert_eq!(pool.state().refused, 1);
        assert_eq!(pool.state().evicted, 3);
        drop(others);
    }

    #[test]
    fn the_longest_idle_goes_first() {
        let pool = Rc::new(Pool::new(4));
        let places: Vec<_> = (0..4).map(|_| pool.enter(client(1), 80).expect("a place")).collect();
        // Active since it came, but the others are newer.
        idle(&places[0], 0);
        idle(&places[1], 100);
        idle(&places[2], 200);
        idle(&places[3], 300);
        let own = pool.enter(client(1), 80).expect("a place");
        assert!(!is_evicted(&places[0]));
        assert_eq!(places.iter().filter(|place| is_evicted(place)).count(), 1);
        drop(own);
    }

    #[test]
    fn a_crowded_port_makes_room_for_the_others() {
        let pool = Rc::new(Pool::new(64));
        let crowd: Vec<_> =
            (0..60).map(|last| pool.enter(client(last), 80).expect("a place")).collect();
        let calm: Vec<_> =
            (60..64).map(|last| pool.enter(client(last), 81).expect("a place")).collect();
        calm.iter().for_each(|place| idle(place, 3600));
        let newcomer = pool.enter(client(200), 82).expect("a place");
        assert_eq!(crowd.iter().filter(|place| is_evicted(place)).count(), 1);
        assert!(!calm.iter().any(is_evicted));
        assert!(pool.enter(client(201), 80).is_none(), "the crowd's own port is full of busy ones");
        drop(newcomer);
    }

    #[test]
    fn a_smaller_pool_empties_when_somebody_comes() {
        let pool = Rc::new(Pool::new(8));
        let places: Vec<_> = (0..8).map(|_| pool.enter(client(1), 80).expect("a place")).collect();
        places.iter().for_each(|place| idle(place, 60));
        pool.resize(4);
        let newcomer = pool.enter(client(2), 80).expect("a place");
        assert_eq!(pool.state().open, 4);
        drop((places, newcomer));
        assert_eq!(pool.state().open, 0, "who was evicted gives nothing back twice");
    }

    #[test]
    fn an_ipv6_host_is_its_64() {
        let of = |text: &str| Client::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("::1"), of("::2"));
    }
}
