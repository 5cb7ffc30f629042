//! The magic numbers that open each message, and the TCP port.

/// The registered TCP port.
pub const PORT: u16 = 10809;
/// Opens the server's greeting: the bytes `NBDMAGIC`.
pub const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Follows in the greeting of a newstyle server and opens each option: the bytes `IHAVEOPT`.
pub const OPTION: u64 = 0x4948_4156_454f_5054;
/// Opens each reply to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// Opens each request of the transmission phase.
pub const REQUEST: u32 = 0x2560_9513;
/// Opens each request once extended headers were negotiated.
pub const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Opens a simple reply.
pub const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Opens a chunk of a structured reply.
pub const STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Opens a chunk of a reply once extended headers were negotiated.
pub const EXTENDED_REPLY: u32 = 0x6e8a_278c;
