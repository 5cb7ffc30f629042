//! The flag words of the protocol, one type each so that they cannot be mixed up.

macro_rules! flag_word {
    ($(#[$doc:meta])* $name:ident: $word:ty { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
        pub struct $name(pub $word);

        impl $name {
            /// No flag.
            pub const NONE: Self = Self(0);
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            /// Whether every flag of `flags` is set here.
            #[must_use]
            pub const fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }

            /// The flags of both.
            #[must_use]
            pub const fn with(self, flags: Self) -> Self {
                Self(self.0 | flags.0)
            }

            /// The flags of both if `condition` holds, else the flags of `self`.
            #[must_use]
            pub const fn with_if(self, condition: bool, flags: Self) -> Self {
                if condition { self.with(flags) } else { self }
            }

            /// The flags of `self` that are not in `flags`.
            #[must_use]
            pub const fn without(self, flags: Self) -> Self {
                Self(self.0 & !flags.0)
            }
        }
    };
}

flag_word! {
    /// What the server says of itself in the greeting.
    HandshakeFlags: u16 {
        /// Options are answered, so that more than one can be sent.
        FIXED_NEWSTYLE = 0;
        /// The 124 zeroes after the answer to EXPORT_NAME may be left out.
        NO_ZEROES = 1;
    }
}

flag_word! {
    /// The client's answer to [`HandshakeFlags`].
    ClientFlags: u32 {
        /// The client understands replies to options.
        FIXED_NEWSTYLE = 0;
        /// The client does not want the 124 zeroes.
        NO_ZEROES = 1;
    }
}

flag_word! {
    /// What can be done with an export.
    TransmissionFlags: u16 {
        /// Always set.
        HAS_FLAGS = 0;
        /// Commands that change the export are refused.
        READ_ONLY = 1;
        /// FLUSH is supported.
        SEND_FLUSH = 2;
        /// The FUA flag is supported.
        SEND_FUA = 3;
        /// Access is best in rising order.
        ROTATIONAL = 4;
        /// TRIM is supported.
        SEND_TRIM = 5;
        /// WRITE_ZEROES is supported.
        SEND_WRITE_ZEROES = 6;
        /// The DF flag is supported; set only where structured replies were negotiated.
        SEND_DF = 7;
        /// All connections see one cache, and a flush on one covers the replied writes of all.
        CAN_MULTI_CONN = 8;
        /// RESIZE is supported (experimental; never set here).
        SEND_RESIZE = 9;
        /// CACHE is supported.
        SEND_CACHE = 10;
        /// The FAST_ZERO flag is supported.
        SEND_FAST_ZERO = 11;
        /// BLOCK_STATUS may have a payload; set only with extended headers and a metadata context.
        BLOCK_STATUS_PAYLOAD = 12;
    }
}

flag_word! {
    /// How a command is to be done.
    CommandFlags: u16 {
        /// The reply waits until what was changed is durable.
        FUA = 0;
        /// WRITE_ZEROES must leave the range provisioned.
        NO_HOLE = 1;
        /// READ must be answered with at most one content chunk.
        DF = 2;
        /// BLOCK_STATUS wants one extent.
        REQ_ONE = 3;
        /// WRITE_ZEROES must fail at once if it is not faster than writing.
        FAST_ZERO = 4;
        /// With extended headers: the length is the length of a payload.
        PAYLOAD_LEN = 5;
    }
}

flag_word! {
    /// Marks on a chunk of a structured reply.
    ChunkFlags: u16 {
        /// The last chunk of the reply.
        DONE = 0;
    }
}
