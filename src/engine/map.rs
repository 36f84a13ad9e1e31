//! A hash map that never takes long: one of a million entries grows and shrinks a few thousand
//! entries at a time, since it grows under the lock that every request needs. It gives the memory
//! of what was removed back, and can be asked by borrowed keys that own nothing.
//!
//! Names are chosen by programs, so the hash is keyed (SipHash, as the standard library's).

pub use hashbrown::Equivalent;
use hashbrown::HashTable;
use std::hash::{BuildHasher, Hash, RandomState};

/// Into how many tables of their own the entries fall.
const SHARDS: usize = 256;

/// A hash map.
#[derive(Debug)]
pub struct Map<K, V> {
    shards: Vec<HashTable<(K, V)>>,
    hasher: RandomState,
    length: usize,
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| HashTable::new()).collect(),
            hasher: RandomState::new(),
            length: 0,
        }
    }
}

/// The shard of a hash, by bits that its table looks at last.
fn shard(hash: u64) -> usize {
    (hash >> 40) as usize % SHARDS
}

impl<K: Hash + Eq, V> Map<K, V> {
    /// How many entries it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The value of a key.
    pub fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&V> {
        let hash = self.hasher.hash_one(key);
        let found = self.shards[shard(hash)].find(hash, |(k, _)| key.equivalent(k));
        found.map(|(_, value)| value)
    }

    /// The value of a key, to change it.
    pub fn get_mut<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<&mut V> {
        let hash = self.hasher.hash_one(key);
        let found = self.shards[shard(hash)].find_mut(hash, |(k, _)| key.equivalent(k));
        found.map(|(_, value)| value)
    }

    /// Is there such a key?
    pub fn contains<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> bool {
        self.get(key).is_some()
    }

    /// Gives a key a value; returns the one that it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if let Some(old) = self.get_mut(&key) {
            return Some(std::mem::replace(old, value));
        }
        let hasher = &self.hasher;
        let hash = hasher.hash_one(&key);
        let table = &mut self.shards[shard(hash)];
        table.insert_unique(hash, (key, value), |(k, _)| hasher.hash_one(k));
        self.length += 1;
        None
    }

    /// Removes a key; returns its value.
    pub fn remove<Q: Hash + Equivalent<K> + ?Sized>(&mut self, key: &Q) -> Option<V> {
        let hasher = &self.hasher;
        let hash = hasher.hash_one(key);
        let table = &mut self.shards[shard(hash)];
        let entry = table.find_entry(hash, |(k, _)| key.equivalent(k)).ok()?;
        let ((_, value), _) = entry.remove();
        if table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, |(k, _)| hasher.hash_one(k));
        }
        self.length -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::Map;
    use std::collections::HashMap;

    fn capacity(map: &Map<u64, u64>) -> usize {
        map.shards.iter().map(|table| table.capacity()).sum()
    }

    #[test]
    fn it_holds_what_the_standard_map_holds() {
        let mut map = Map::default();
        let mut model = HashMap::new();
        for n in 0..200_000_u64 {
            let (key, value) = (n * n % 9973, n);
            match n % 3 {
                0 => assert_eq!(map.remove(&key), model.remove(&key)),
                _ => assert_eq!(map.insert(key, value), model.insert(key, value)),
            }
            assert_eq!(map.get(&(n % 9973)), model.get(&(n % 9973)));
            assert_eq!(map.len(), model.len());
        }
    }

    #[test]
    fn it_shrinks_with_what_is_removed() {
        let mut map = Map::default();
        let remove = |map: &mut Map<_, _>, n| assert_eq!(map.remove(&n), Some(n));
        (0..100_000).for_each(|n| assert_eq!(map.insert(n, n), None));
        let full = capacity(&map);
        assert!(full >= 100_000);
        (0..99_000).for_each(|n| remove(&mut map, n));
        assert!(capacity(&map) < full / 4);
        assert!((99_000..100_000).all(|n| map.get(&n) == Some(&n)));
        (99_000..100_000).for_each(|n| remove(&mut map, n));
        assert_eq!((map.len(), capacity(&map)), (0, 0));
    }
}
