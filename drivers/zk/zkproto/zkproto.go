// Package zkproto names the numbers of the ZKTeco terminal protocol (TCP 4370): what driver and simulator agree on. It
// holds constants only. Each side has a codec of its own, so that one mistake cannot agree with itself.
package zkproto

// Port is where terminals listen, TCP and UDP.
const Port = 4370

// Magic opens each TCP frame: 50 50 82 7d, then the payload's length as u32. All integers are little-endian.
const Magic uint32 = 0x7d825050

const (
	PrefixLen  = 8         // of a TCP frame: magic, length
	HeaderLen  = 8         // of a payload: code, checksum, session, reply number; u16 each
	MaxPayload = 8 + 1<<20 // larger than any frame ever seen (8 + 65536)
	MaxChunk   = 65472     // bytes asked for in one ReadBuffer over TCP
	MaxReply   = 65534     // reply numbers run from 0 to here, then start again; 65535 is never used
)

// Commands, client to terminal.
const (
	CmdUserWrite     = 8
	CmdUserTempRead  = 9 // with FCT 5: all users, the old direct way
	CmdOptionRead    = 11
	CmdOptionWrite   = 12
	CmdAttLogRead    = 13
	CmdClearData     = 14
	CmdClearAttLog   = 15
	CmdDeleteUser    = 18
	CmdUnlock        = 31
	CmdClearOpLog    = 33
	CmdOpLogRead     = 34
	CmdGetFreeSizes  = 50
	CmdStartVerify   = 60
	CmdStartEnroll   = 61
	CmdCancelCapture = 62
	CmdState         = 64
	CmdPinWidth      = 69
	CmdDoorState     = 75
	CmdChecksum      = 119
	CmdGetTime       = 201
	CmdSetTime       = 202
	CmdRegEvent      = 500 // also the code of every event frame from the terminal
	CmdConnect       = 1000
	CmdExit          = 1001
	CmdEnable        = 1002
	CmdDisable       = 1003
	CmdRestart       = 1004
	CmdPowerOff      = 1005
	CmdRefreshData   = 1013
	CmdRefreshOption = 1014
	CmdTestVoice     = 1017
	CmdGetVersion    = 1100
	CmdAuth          = 1102
	CmdPrepareData   = 1500 // announces bulk data, both directions
	CmdData          = 1501 // carries it, both directions
	CmdFreeData      = 1502
	CmdPrepareBuffer = 1503 // u8 1, u16 sub-command, u32 FCT, u32 ext
	CmdReadBuffer    = 1504 // u32 start, u32 size
)

// Reply codes.
const (
	AckOK        = 2000
	AckError     = 2001
	AckData      = 2002
	AckRetry     = 2003
	AckRepeat    = 2004
	AckUnauth    = 2005
	AckMode      = 4989 // unnamed; a SpeedFace H5L set to "access control" answers an attendance read with it
	AckErrorData = 65531
	AckErrorInit = 65532
	AckErrorCmd  = 65533
	AckUnknown   = 65535
)

// Data types (FCT) of bulk reads.
const (
	FctAttLog = 1
	FctOpLog  = 4
	FctUser   = 5
)

// Event bits: the session field of an event frame, and the mask of CmdRegEvent.
const (
	EventAttLog       = 1
	EventFinger       = 2
	EventEnrollUser   = 4
	EventEnrollFinger = 8
	EventButton       = 16
	EventUnlock       = 32
	EventVerify       = 128
	EventFingerScore  = 256
	EventAlarm        = 512
	EventAll          = 0xffff
)

// Places in the answer to CmdGetFreeSizes, an array of u32.
const (
	SizeUsers      = 4
	SizeFingers    = 6
	SizeRecords    = 8
	SizeOpLog      = 10
	SizeAdmins     = 12
	SizePasswords  = 13
	SizeFingerCap  = 14
	SizeUserCap    = 15
	SizeRecordCap  = 16
	SizeFingerFree = 17
	SizeUserFree   = 18
	SizeRecordFree = 19
	SizeFaces      = 20
	SizeFaceCap    = 22
)

// Verify types in records and events.
const (
	VerifyPassword    = 0
	VerifyFinger      = 1
	VerifyCard        = 2
	VerifyPasswordTFT = 3
	VerifyCardTFT     = 4
	VerifyFace        = 15
	VerifyPalm        = 25
	VerifyOther       = 200
)

// States (in/out) in records and events.
const (
	StateCheckIn     = 0
	StateCheckOut    = 1
	StateBreakOut    = 2
	StateBreakIn     = 3
	StateOvertimeIn  = 4
	StateOvertimeOut = 5
	StateNone        = 255
)

// Alarm codes, the first byte of an EventAlarm.
const (
	AlarmDoorClosed = 50
	AlarmDoorOpen   = 51
	AlarmExitButton = 53 // 0x35
	AlarmDoorForced = 54 // the 2006 manual; 0x54 by another source: "door closing"
	AlarmTamper     = 55 // 0x37
	AlarmMisuse     = 58 // 0x3a
	AlarmClosing    = 0x54
	AlarmDuress     = 0x20 // at offset 4 of the 12-byte form
	AlarmPassback   = 0x22 // at offset 4 of the 12-byte form
)

// Privileges of a user; bit 0 means disabled.
const (
	PrivUser       = 0
	PrivEnroller   = 2
	PrivAdmin      = 6
	PrivSuperAdmin = 14
)
