//! What may go wrong, how often, and the dice that decide.

/// Something that the simulated kernel or network does to a shard that does not expect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A receive brings less than there is.
    ShortReceive,
    /// A send takes less than there is room for.
    ShortSend,
    /// A receive finds no buffer although one comes home before its completion is read.
    NoBuffers,
    /// A multishot receive or accept ends with a perfectly valid result.
    MultishotEnd,
    /// The network resets a connection for both ends.
    Reset,
    /// A completion, or bytes on their way, are late.
    Delay,
    /// The completions of one turn come in an order of their own.
    Reorder,
    /// An upstream refuses a connect.
    ConnectRefused,
    /// An upstream does not answer a connect.
    ConnectTimeout,
    /// The system's table of files is full for a moment.
    TableFull,
    /// A new connection's outer end has a small window and reads it in sips.
    SlowReader,
    /// An operation that is being cancelled gets something done first.
    CancelRace,
    /// A ring is one of an older kernel, which fills each buffer once only.
    WholeBuffers,
    /// No local port is left for a connect.
    NoLocalPort,
}

impl Fault {
    /// Every fault, in the order of the enum.
    pub const ALL: [Fault; 14] = [
        Fault::ShortReceive,
        Fault::ShortSend,
        Fault::NoBuffers,
        Fault::MultishotEnd,
        Fault::Reset,
        Fault::Delay,
        Fault::Reorder,
        Fault::ConnectRefused,
        Fault::ConnectTimeout,
        Fault::TableFull,
        Fault::SlowReader,
        Fault::CancelRace,
        Fault::WholeBuffers,
        Fault::NoLocalPort,
    ];

    /// How likely it is on the worst of days, per mille of the times it could happen. What ends
    /// connections is kept rare enough that most of them live to meet the rest.
    fn per_mille_max(self) -> u16 {
        match self {
            Fault::Reorder => 1000,
            Fault::CancelRace | Fault::WholeBuffers => 500,
            Fault::ShortReceive | Fault::ShortSend | Fault::MultishotEnd => 300,
            Fault::NoBuffers | Fault::SlowReader => 200,
            Fault::Delay | Fault::ConnectRefused => 100,
            Fault::ConnectTimeout | Fault::NoLocalPort => 50,
            Fault::TableFull => 20,
            Fault::Reset => 5,
        }
    }
}

/// How likely each fault is, per mille of the times it could happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults([u16; Fault::ALL.len()]);

impl Faults {
    /// A perfect day.
    pub fn none() -> Faults {
        Faults([0; Fault::ALL.len()])
    }

    /// How bad the day is: about half of the faults are on, each as likely as the seed says.
    pub fn from_seed(seed: u64) -> Faults {
        let mut random = Random::new(seed ^ 0x5eed_0fa1_7000_0000);
        let mut faults = Faults::none();
        for fault in Fault::ALL {
            if random.below(2) == 0 {
                let per_mille = 1 + random.below(u64::from(fault.per_mille_max()));
                faults = faults.with(fault, per_mille as u16);
            }
        }
        faults
    }

    /// The same day, with one fault as likely as given.
    ///
    /// # Panics
    ///
    /// When `per_mille` is above 1000.
    #[must_use]
    pub fn with(mut self, fault: Fault, per_mille: u16) -> Faults {
        assert!(per_mille <= 1000, "{fault:?}: {per_mille} per mille");
        self.0[fault as usize] = per_mille;
        self
    }

    /// How likely a fault is.
    pub fn per_mille(&self, fault: Fault) -> u16 {
        self.0[fault as usize]
    }
}

/// SplitMix64: all the chance there is in a simulation comes out of one of these.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Starts the sequence that belongs to a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number from 0 up to, not including, `bound`; 0 when `bound` is 0. The bias of the
    /// remainder is too small to matter here.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// A place in a list of `count`, which is not empty.
    pub fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    /// Puts a list into any order.
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}
