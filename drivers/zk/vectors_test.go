package zk

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"gatepost"
	"gatepost/drivers/zk/zkproto"

	"github.com/google/go-cmp/cmp"
)

// unhex reads hex with spaces and bars.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.NewReplacer(" ", "", "|", "", "\n", "").Replace(s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// vectors are frames recorded from real terminals (R; pyzk's tests and adrobinoga/zk-protocol) or computed (S), with what
// they say.
var vectors = []struct {
	name string
	hex  string
	frame
	data string
}{
	{"R connect", "5050827d08000000e80317fc00000000", frame{code: zkproto.CmdConnect}, ""},
	{"R ok", "5050827d08000000d007fffc2ffb0000", frame{code: zkproto.AckOK, session: 0xfb2f}, ""},
	{"R exit", "5050827d08000000e903e6002ffb0100", frame{code: zkproto.CmdExit, session: 0xfb2f, reply: 1}, ""},
	{"R unauth", "5050827d08000000d5075bb2cf450000", frame{code: zkproto.AckUnauth, session: 0x45cf}, ""},
	{"R unauth again", "5050827d08000000d5075ab2cf450100", frame{code: zkproto.AckUnauth, session: 0x45cf, reply: 1}, ""},
	{"R auth key 12", "5050827d0c0000004e044e2ccf450100614d323c", frame{code: zkproto.CmdAuth, session: 0x45cf, reply: 1}, "614d323c"},
	{"R auth key 45", "5050827d0c0000004e044db0cf45010061c9323c", frame{code: zkproto.CmdAuth, session: 0x45cf, reply: 1}, "61c9323c"},
	{"R auth ok", "5050827d08000000d0075fb2cf450100", frame{code: zkproto.AckOK, session: 0x45cf, reply: 1}, ""},
	{"R exit after auth", "5050827d08000000e90345b6cf450200", frame{code: zkproto.CmdExit, session: 0x45cf, reply: 2}, ""},
	{"R sizes", "5050827d080000003200fcb9cf450200", frame{code: zkproto.CmdGetFreeSizes, session: 0x45cf, reply: 2}, ""},
	{"R platform", "5050827d120000000b00b9e6f38d0c007e506c6174666f726d00", frame{code: zkproto.CmdOptionRead, session: 0x8df3, reply: 12}, "7e506c6174666f726d00"},
	{"R platform reply", "5050827d1d000000d007714cf38d0c007e506c6174666f726d3d5a454d3736305f54465400", frame{code: zkproto.AckOK, session: 0x8df3, reply: 12}, "7e506c6174666f726d3d5a454d3736305f54465400"},
	{"R work code", "5050827d110000000b0084c2f38d0b00576f726b436f646500", frame{code: zkproto.CmdOptionRead, session: 0x8df3, reply: 11}, "576f726b436f646500"},
	{"R work code reply", "5050827d13000000d007828af38d0b00576f726b436f64653d3000", frame{code: zkproto.AckOK, session: 0x8df3, reply: 11}, "576f726b436f64653d3000"},
	{"R os", "5050827d0c0000000b0058efc5c005007e4f5300", frame{code: zkproto.CmdOptionRead, session: 0xc0c5, reply: 5}, "7e4f5300"},
	{"R lock on", "5050827d110000000c00ebbb84c547004c6f636b4f6e3d3500", frame{code: zkproto.CmdOptionWrite, session: 0xc584, reply: 0x47}, "4c6f636b4f6e3d3500"},
	{"R passback", "5050827d190000000c00602284c54300416e7469506173736261636b4f6e3d3000", frame{code: zkproto.CmdOptionWrite, session: 0xc584, reply: 0x43}, "416e7469506173736261636b4f6e3d3000"},
	{"R state reply", "5050827d08000000d007f6f702003700", frame{code: zkproto.AckOK, session: 2, reply: 0x37}, ""},
	{"R users", "5050827d13000000df053ca6cf4514000109000500000000000000", frame{code: zkproto.CmdPrepareBuffer, session: 0x45cf, reply: 20}, "0109000500000000000000"},
	{"R large, other", "5050827d15000000d007acf93064160000941d0000941d0000b400be00", frame{code: zkproto.AckOK, session: 0x6430, reply: 22}, "00941d0000941d0000b400be00"},
	{"R prepare", "5050827d10000000dc050da65c3c1600b4130000f0030000", frame{code: zkproto.CmdPrepareData, session: 0x3c5c, reply: 22}, "b4130000f0030000"},
	{"R prepare, other", "5050827d10000000dc05477830641700941d000000000100", frame{code: zkproto.CmdPrepareData, session: 0x6430, reply: 23}, "941d000000000100"},
	{"R last data", "5050827d0c000000dd0507fa0500160000000000", frame{code: zkproto.CmdData, session: 5, reply: 22}, "00000000"},
	{"R tiny data", "5050827d0b000000dd054ba201003500a05701", frame{code: zkproto.CmdData, session: 1, reply: 0x35}, "a05701"},
	{"R bulk ok", "5050827d08000000d007fcf701003200", frame{code: zkproto.AckOK, session: 1, reply: 0x32}, ""},
	{"R free", "5050827d08000000de05aebd5c3c1700", frame{code: zkproto.CmdFreeData, session: 0x3c5c, reply: 23}, ""},
	{"R prepare template", "5050827d10000000dc055558d0983200dc040000f0030000", frame{code: zkproto.CmdPrepareData, session: 0x98d0, reply: 0x32}, "dc040000f0030000"},
	{"R event 32", "5050827d28000000f401ac1201000000 393939313131333333000000000000000000000000000000 0100120619112905", frame{code: zkproto.CmdRegEvent, session: 1}, "3939393131313333330000000000000000000000000000000100120619112905"},
	{"R event 12", "5050827d14000000f401ae4301000000f19449000000120c07130906", frame{code: zkproto.CmdRegEvent, session: 1}, "f19449000000120c07130906"},
	{"R event score", "5050827d09000000f401a7fc0001000064", frame{code: zkproto.CmdRegEvent, session: 256}, "64"},
	{"R stray byte", "5050827d09000000d007babb5c3c100009", frame{code: zkproto.AckOK, session: 0x3c5c, reply: 16}, "09"},
	{"S get time", "5050827d08000000c90004042ffb0300", frame{code: zkproto.CmdGetTime, session: 0xfb2f, reply: 3}, ""},
	{"S get time reply", "5050827d0c000000d00761d62ffb03007ef41c32", frame{code: zkproto.AckOK, session: 0xfb2f, reply: 3}, "7ef41c32"},
	{"S set time", "5050827d0c000000ca0066dd2ffb04007ef41c32", frame{code: zkproto.CmdSetTime, session: 0xfb2f, reply: 4}, "7ef41c32"},
	{"S serial", "5050827d160000000b00bcbb2ffb05007e53657269616c4e756d62657200", frame{code: zkproto.CmdOptionRead, session: 0xfb2f, reply: 5}, "7e53657269616c4e756d62657200"},
	{"S serial reply", "5050827d21000000d007ef642ffb05007e53657269616c4e756d6265723d4750303030303030303100", frame{code: zkproto.AckOK, session: 0xfb2f, reply: 5}, "7e53657269616c4e756d6265723d4750303030303030303100"},
	{"S error", "5050827d08000000d107f8fc2ffb0600", frame{code: zkproto.AckError, session: 0xfb2f, reply: 6}, ""},
	{"S unlock 50", "5050827d0c0000001f0078042ffb070032000000", frame{code: zkproto.CmdUnlock, session: 0xfb2f, reply: 7}, "32000000"},
	{"S unlock 5", "5050827d0c0000001f00a5042ffb070005000000", frame{code: zkproto.CmdUnlock, session: 0xfb2f, reply: 7}, "05000000"},
	{"S door state", "5050827d080000004b007d042ffb0800", frame{code: zkproto.CmdDoorState, session: 0xfb2f, reply: 8}, ""},
	{"S door state reply", "5050827d09000000d007f6fc2ffb080001", frame{code: zkproto.AckOK, session: 0xfb2f, reply: 8}, "01"},
	{"S events, all", "5050827d0c000000f401d3022ffb0900ffff0000", frame{code: zkproto.CmdRegEvent, session: 0xfb2f, reply: 9}, "ffff0000"},
	{"S events, punches", "5050827d0c000000f401d2022ffb090001000000", frame{code: zkproto.CmdRegEvent, session: 0xfb2f, reply: 9}, "01000000"},
	{"S event ack", "5050827d08000000d007fffc2ffb0000", frame{code: zkproto.AckOK, session: 0xfb2f}, ""},
	{"S enable", "5050827d08000000ea03dc002ffb0a00", frame{code: zkproto.CmdEnable, session: 0xfb2f, reply: 10}, ""},
	{"S log", "5050827d13000000df05e4f12ffb0b00010d000000000000000000", frame{code: zkproto.CmdPrepareBuffer, session: 0xfb2f, reply: 11}, "010d000000000000000000"},
	{"S log reply", "5050827d15000000d007f4542ffb0b0000540000005400000000000000", frame{code: zkproto.AckOK, session: 0xfb2f, reply: 11}, "00540000005400000000000000"},
	{"S read buffer", "5050827d10000000e0058ffe2ffb0c000000000054000000", frame{code: zkproto.CmdReadBuffer, session: 0xfb2f, reply: 12}, "0000000054000000"},
	{"S prepare data", "5050827d10000000dc0592fe2ffb0c005400000000000100", frame{code: zkproto.CmdPrepareData, session: 0xfb2f, reply: 12}, "5400000000000100"},
	{"S free", "5050827d08000000de05e4fe2ffb0d00", frame{code: zkproto.CmdFreeData, session: 0xfb2f, reply: 13}, ""},
	{"S refresh", "5050827d08000000f503cd002ffb0e00", frame{code: zkproto.CmdRefreshData, session: 0xfb2f, reply: 14}, ""},
	{"S version", "5050827d080000004c046f002ffb1500", frame{code: zkproto.CmdGetVersion, session: 0xfb2f, reply: 21}, ""},
	{"S version reply", "5050827d1d000000d00769ad2ffb150056657220362e363020417072203238203230313500", frame{code: zkproto.AckOK, session: 0xfb2f, reply: 21}, "56657220362e363020417072203238203230313500"},
	{"S last reply number", "5050827d08000000c90008042ffbfeff", frame{code: zkproto.CmdGetTime, session: 0xfb2f, reply: 65534}, ""},
}

// TestVectors reads and writes every frame of the vectors.
func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			wire := unhex(t, v.hex)
			want := v.frame
			want.data = unhex(t, v.data)
			got, err := readFrame(bytes.NewReader(wire))
			if err != nil {
				t.Fatal(err)
			}
			if got.code != want.code || got.session != want.session || got.reply != want.reply || !bytes.Equal(got.data, want.data) {
				t.Errorf("read %+v, want %+v", got, want)
			}
			if b := want.append(nil); !bytes.Equal(b, wire) {
				t.Errorf("written %x, want %x", b, wire)
			}
		})
	}
}

func TestBulkChecksums(t *testing.T) {
	// Headers of the recorded large download; the frames themselves hold people's data.
	data := make([]byte, 2032)
	le.PutUint32(data, 2028)
	for i := range 2028 {
		data[4+i] = byte(7*i + 3)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(data)); sum != "08d314b859db5e1ea3a24cd78f7adc75831b24b7e7ddac4ac3d1e14c387b645c" {
		t.Fatalf("data set %s", sum)
	}
	b := recipe(data)
	if sum := fmt.Sprintf("%x", sha256.Sum256(b)); len(b) != 2120 || sum != "c0674d53fa57d45bc7212b9412ef1e4912e647653d38317106665c2f2fc75733" {
		t.Errorf("%d bytes, %s", len(b), sum)
	}
}

// recipe is the multi-frame answer of session fb2f to request 20.
func recipe(data []byte) []byte {
	const session, reply, most = 0xfb2f, 20, 1008
	b := frame{zkproto.CmdPrepareData, session, reply, le.AppendUint32(le.AppendUint32(nil, 2032), most)}.append(nil)
	seq := uint16(0)
	for off := 0; off < len(data); off += most {
		b = frame{zkproto.CmdData, seq, reply, data[off:min(off+most, len(data))]}.append(b)
		seq++
	}
	return frame{zkproto.AckOK, seq - 1, reply, nil}.append(b)
}

func TestCommKey(t *testing.T) {
	for _, v := range []struct {
		key     uint32
		session uint16
		ticks   byte
		want    string
	}{
		{0, 0, 50, "617d3279"},
		{0, 0x03e8, 50, "617d327a"},
		{12, 0x45cf, 50, "614d323c"},
		{45, 0x45cf, 50, "61c9323c"},
		{1, 1, 50, "61fd3279"},
		{123456, 0x1234, 50, "267f32eb"},
		{123456, 0x1234, 51, "277e33ea"},
		{8697, 0xfb2f, 50, "e5e23282"},
		{999999, 0xffff, 50, "22813296"},
		{88888888, 0x8df3, 50, "0b6132b9"},
		{1, 0xc0c5, 0, "53cf008b"},
		{4294967295, 0, 50, "9e823286"},
		{0x7fffffff, 0x3c5c, 50, "617d3245"},
	} {
		if got := fmt.Sprintf("%x", commKey(v.key, v.session, v.ticks)); got != v.want {
			t.Errorf("key %d session %#x ticks %d: %s, want %s", v.key, v.session, v.ticks, got, v.want)
		}
	}
}

func TestPackedTimes(t *testing.T) {
	for _, v := range []struct {
		packed uint32
		wall   gatepost.Wall
		real   bool
	}{
		{0, "2000-01-01T00:00:00", true},
		{1, "2000-01-01T00:00:01", true},
		{0x234F15EC, "2018-06-06T07:31:56", true},
		{0x23689BC2, "2018-06-25T16:09:38", true},
		{0x2368B131, "2018-06-25T17:41:05", true},
		{0x2368B36B, "2018-06-25T17:50:35", true},
		{0x29C9EBB8, "2021-10-24T13:42:16", true},
		{0x1EA7EBA8, "2016-01-01T19:02:00", true},
		{0x2E48C140, "2024-02-29T12:00:00", true},
		{0x321CF47E, "2026-02-28T23:59:58", true},
		{0x33840417, "2026-11-22T08:30:15", true},
		{0xBF92F7FF, "2099-12-31T23:59:59", true},
		{0x321CF480, "2026-02-29T00:00:00", false},
		{0x32715480, "2026-04-31T00:00:00", false},
		{0xFFFFFFFF, "2133-08-18T06:28:15", false},
	} {
		year, month, day, hour, minute, second := unpack(v.packed)
		if w := gatepost.NewWall(year, month, day, hour, minute, second); w != v.wall {
			t.Errorf("%#x is %s, want %s", v.packed, w, v.wall)
		}
		if realDate(year, month, day) != v.real {
			t.Errorf("%#x: real %v, want %v", v.packed, !v.real, v.real)
		}
		if year < 2100 {
			if p := pack(year, month, day, hour, minute, second); p != v.packed {
				t.Errorf("%s packs to %#x, want %#x", v.wall, p, v.packed)
			}
		}
	}
}

func TestFreeSizes(t *testing.T) {
	for _, v := range []struct {
		name, hex string
		want      map[string]int
	}{
		{"92 bytes", "5050827d64000000d007a315966313000000000000000000000000000000000007000000 00000000 06000000 00000000 5d020000 00000000 0f0c0000 00000000 01000000 00000000 b80b0000 10270000 a0860100 b20b0000 09270000 43840100 00000000 00000000 00000000",
			map[string]int{"users": 7, "fingers": 6, "records": 605, "oplog": 3087, "admins": 1, "passwords": 0, "fingers_capacity": 3000, "users_capacity": 10000, "records_capacity": 100000, "faces": 0, "faces_capacity": 0}},
		{"80 bytes", "5050827d58000000d0074c49582013000000000000000000000000000000000002000000000000000000000000000000000000000000000007000000000000000000000000000000f4010000f401000050c30000f4010000f201000050c30000",
			map[string]int{"users": 2, "fingers": 0, "records": 0, "oplog": 7, "admins": 0, "passwords": 0, "fingers_capacity": 500, "users_capacity": 500, "records_capacity": 50000}},
	} {
		f, err := readFrame(bytes.NewReader(unhex(t, v.hex)))
		if err != nil {
			t.Fatal(v.name, err)
		}
		if d := cmp.Diff(v.want, decodeSizes(f.data)); d != "" {
			t.Errorf("%s (-want +got):\n%s", v.name, d)
		}
	}
	if n := decodeSizes(make([]byte, 4)); len(n) != 0 {
		t.Errorf("WL10's four bytes say %v", n)
	}
}

func TestRecordedUsers(t *testing.T) {
	f, err := readFrame(bytes.NewReader(unhex(t, "5050827d9c000000dd053c87582015009000000001000000000000000000006366756c616e6f0000000000000000000000000000000000000000000000000000000000003130303030316c70000000000000000000000000000000000200000000000000000000726d656e67616e6f0000000000000000000000000000000000000000000000000000000000323232323232636200000000000000000000000000000000")))
	if err != nil {
		t.Fatal(err)
	}
	b := f.data[4:]
	size, err := userSize(b, 2)
	if err != nil || size != userLarge {
		t.Fatalf("size %d, %v", size, err)
	}
	for i, want := range []user{{uid: 1, id: "100001lp", name: "cfulano"}, {uid: 2, id: "222222cb", name: "rmengano"}} {
		if got := encodingUTF8.user(b[i*size : (i+1)*size]); got != want {
			t.Errorf("user %d is %+v, want %+v", i, got, want)
		}
	}

	ned := unhex(t,
		"0d0000343434 00c69a807c 4e6564"+strings.Repeat("00", 21)+"de000000 02 0100 0100 0200 0000 353535"+strings.Repeat("00", 21))
	if got, want := encodingUTF8.user(ned), (user{uid: 13, id: "555", name: "Ned", card: 222, grp: 2, pass: true}); got != want {
		t.Errorf("Ned is %+v, want %+v", got, want)
	}
	nuevo := unhex(t, "0e00 06 31323334353600 7c 4e7565766f"+strings.Repeat("00", 19)+"8f190000 01 0000 0000 0000 0000 3131323234343838"+strings.Repeat("00", 16))
	if got, want := encodingUTF8.user(nuevo), (user{uid: 14, priv: 6, id: "11224488", name: "Nuevo", card: 6543, grp: 1, pass: true}); got != want {
		t.Errorf("Nuevo is %+v, want %+v", got, want)
	}
	small := unhex(t, "0e000631323334354e7565766f0000008f19000000010000a845ab00")
	if got, want := encodingUTF8.user(small), (user{uid: 14, priv: 6, id: "11224488", name: "Nuevo", card: 6543, grp: 1, pass: true}); got != want {
		t.Errorf("Nuevo, 28 bytes, is %+v, want %+v", got, want)
	}
}

// decodeAll decodes a log.
func decodeAll(t testing.TB, b []byte, count int) []gatepost.Record {
	t.Helper()
	l, err := findLayout(b, len(b), count, 0, 2027)
	if err != nil {
		t.Fatal(err)
	}
	var rs []gatepost.Record
	d := decoder{layout: l, enc: encodingUTF8, same: newOccurrences(), emit: func(p []gatepost.Record) error {
		rs = append(rs, p...)
		return nil
	}}
	if err := d.push(b); err != nil {
		t.Fatal(err)
	}
	if err := d.flush(); err != nil {
		t.Fatal(err)
	}
	return rs
}

func punchRecord(user string, wall gatepost.Wall, m gatepost.Method, dir gatepost.Direction, raw Raw, occurrence int) gatepost.Record {
	return gatepost.Record{
		Key:  fmt.Sprintf("%s|%s|%d|%d", user, wall, raw.State, occurrence),
		Wall: wall,
		Data: gatepost.Punch{User: user, Method: m, Direction: dir, Raw: &raw},
	}
}

func TestRecordedLogs(t *testing.T) {
	id := "0d00 393939313131333333 000000000000000000000000000000 01 6bb36823 00 00000000ff000000"
	ned := punchRecord("999111333", "2018-06-25T17:50:35", gatepost.MethodFinger, gatepost.DirectionIn, Raw{Verify: 1, UID: 13}, 0)
	again := punchRecord("999111333", "2018-06-25T17:50:35", gatepost.MethodFinger, gatepost.DirectionIn, Raw{Verify: 1, UID: 13}, 1)
	for _, v := range []struct {
		name, hex string
		want      []gatepost.Record
	}{
		{"40", id, []gatepost.Record{ned}},
		{"40, the same twice", id + id, []gatepost.Record{ned, again}},
		{"40, face", "0100 3130303336" + strings.Repeat("00", 19) + "0f b8ebc929 00 0000000000000000",
			[]gatepost.Record{punchRecord("10036", "2021-10-24T13:42:16", gatepost.MethodFace, gatepost.DirectionIn, Raw{Verify: 15, UID: 1}, 0)}},
		{"2x40", "0d00393939313131333333000000000000000000000000000000016bb368230000000000ff0000000e003131323234343838000000000000000000000000000000000f7ef41c32010000000000000000",
			[]gatepost.Record{ned, punchRecord("11224488", "2026-02-28T23:59:58", gatepost.MethodFace, gatepost.DirectionOut, Raw{Verify: 15, State: 1, UID: 14}, 0)}},
		{"49", id + "ff3235350000000000", []gatepost.Record{ned}},
		{"49, in front", "ff3235350000000000" + id, []gatepost.Record{ned}},
		{"16", "15000000ec154f23000000000000000016000000 85824f23 01 00 0000 00000000", []gatepost.Record{
			punchRecord("21", "2018-06-06T07:31:56", gatepost.MethodPIN, gatepost.DirectionIn, Raw{}, 0),
			punchRecord("22", "2018-06-06T15:15:17", gatepost.MethodPIN, gatepost.DirectionOut, Raw{State: 1}, 0),
		}},
	} {
		b := unhex(t, v.hex)
		for _, count := range []int{len(v.want), 0, -1} {
			if d := cmp.Diff(v.want, decodeAll(t, b, count)); d != "" {
				t.Errorf("%s, counted %d (-want +got):\n%s", v.name, count, d)
			}
		}
	}
}

func TestLayoutThatMakesNoSense(t *testing.T) {
	b := unhex(t, strings.Repeat("07002800a8eba71e7b0028004beca71e", 5))
	_, err := findLayout(b, len(b), 10, 0, 2027)
	want := "read the log: 80 bytes are not records of 16, 40 or 49; they begin " + strings.Repeat("07002800a8eba71e7b0028004beca71e", 4)
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %v", err, want)
	}
}

func TestOddIDs(t *testing.T) {
	rec := func(id string) []byte {
		b := make([]byte, recordText)
		copy(b[2:26], id)
		le.PutUint32(b[27:], 0x2368B36B)
		return b
	}
	seen := map[string]string{}
	for _, v := range []struct{ id, want, odd string }{
		{"0012", "0012", ""},
		{"12", "12", ""},
		{"J\xc3\xbcrgen", "Jürgen", ""},
		{"J\xfcrgen", `J\xfcrgen`, "user"},
		{`J\xfcrgen`, `J\x5cxfcrgen`, ""},
		{`a|b\`, `a|b\`, ""},
		{"123456789012345678901234", "123456789012345678901234", ""},
		{"12\x00rest", "12", ""},
		{"", "", ""},
	} {
		r := decodeAll(t, rec(v.id), 1)[0]
		p := r.Data.(gatepost.Punch)
		if raw := p.Raw.(*Raw); p.User != v.want || raw.Odd != v.odd || (raw.Hex != "") != (v.odd != "") {
			t.Errorf("id %q is user %q, %+v; want %q", v.id, p.User, raw, v.want)
		}
		if other, ok := seen[r.Key]; ok && !strings.HasPrefix(v.id, other) {
			t.Errorf("ids %q and %q share the key %q", v.id, other, r.Key)
		}
		seen[r.Key] = v.id
	}
}

func TestEventForms(t *testing.T) {
	const wall = "2026-02-28T23:59:58"
	for _, v := range []struct {
		hex    string
		by     idForm
		text   string
		number uint32
		verify int
		wall   gatepost.Wall
	}{
		{"5050827d12000000f4016eaa010000002a0001001a021c173b3a", byIndex, "", 42, 1, wall},
		{"5050827d14000000f4016eaa010000002a00000001001a021c173b3a", byNumber, "", 42, 1, wall},
		{"5050827d16000000f4016eaa010000002a0001001a021c173b3a00000000", byIndex, "", 42, 1, wall},
		{"5050827d28000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a", byText, "42", 0, 1, wall},
		{"5050827d2c000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a00000000", byText, "42", 0, 1, wall},
		{"5050827d2d000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a0000000000", byText, "42", 0, 1, wall},
		{"5050827d3c000000f40164780100000034320000000000000000000000000000000000000000000001001a021c173b3a" + strings.Repeat("00", 20), byText, "42", 0, 1, wall},
		{"5050827d28000000f401cc4b010000003131343030363400000000000000000000000000000000000f00120b1d0c3703", byText, "1140064", 0, 15, "2018-11-29T12:55:03"},
		{"5050827d28000000f401ac1201000000393939313131333333000000000000000000000000000000 0100120619112905", byText, "999111333", 0, 1, "2018-06-25T17:41:05"},
		{"5050827d14000000f401ae4301000000f19449000000120c07130906", byNumber, "", 4822257, 0, "2018-12-07T19:09:06"},
	} {
		f, err := readFrame(bytes.NewReader(unhex(t, v.hex)))
		if err != nil {
			t.Error(v.hex, err)
			continue
		}
		hits := decodeAttLog(f.data)
		if f.session != zkproto.EventAttLog || len(hits) != 1 {
			t.Errorf("%s: %d hits", v.hex, len(hits))
			continue
		}
		h := hits[0]
		w, _, ok := h.wall()
		if h.by != v.by || string(h.text) != v.text || h.number != v.number || h.verify != v.verify || h.state != 0 || w != v.wall || !ok {
			t.Errorf("%s: %+v at %s", v.hex, h, w)
		}
	}
	long := unhex(t, "3432"+strings.Repeat("00", 22)+"01001a021c173b3a"+strings.Repeat("00", 20))
	for n, want := range map[int]int{0: 0, 9: 0, 10: 1, 11: 0, 13: 0, 31: 0, 32: 1, 51: 1, 52: 1, 53: 1, 62: 2, 104: 2, 157: 3} {
		b := bytes.Repeat(long, 4)[:n]
		if got := len(decodeAttLog(b)); got != want {
			t.Errorf("%d bytes hold %d punches, want %d", n, got, want)
		}
	}
}

func TestAlarms(t *testing.T) {
	for _, v := range []struct {
		hex  string
		want gatepost.Event
	}{
		{"5050827d0c000000f401d4fb0002000037000000", gatepost.Event{Name: "alarm", Message: "terminal tampered with", Detail: alarm{Code: 55}}},
		{"5050827d10000000f401b7fb000200005400000000000000", gatepost.Event{Name: "door", Message: "door closed", Detail: alarm{Code: 0x54}}},
		{"5050827d14000000f401ddfb00020000ffffffff20000d0001000000", gatepost.Event{Name: "alarm", Message: "duress", Detail: alarm{Code: 0x20, UID: 13}}},
	} {
		f, err := readFrame(bytes.NewReader(unhex(t, v.hex)))
		if err != nil || f.session != zkproto.EventAlarm {
			t.Fatal(v.hex, err)
		}
		if d := cmp.Diff(v.want, decodeAlarm(f.data)); d != "" {
			t.Errorf("%s (-want +got):\n%s", v.hex, d)
		}
	}
	for _, hex := range []string{
		"5050827d0d000000f4018afd80000000ffffffff01", // VERIFY unknown
		"5050827d0d000000f4017dfd800000000d00000001", // VERIFY uid 13
		"5050827d08000000f40109fe02000000",           // FINGER
		"5050827d16000000f401f4c5080000000000db0434320000000000000001",
	} {
		if _, err := readFrame(bytes.NewReader(unhex(t, hex))); err != nil {
			t.Error(hex, err)
		}
	}
}

// TestBadFrames has one case per way a frame can be bad, with the exact words.
func TestBadFrames(t *testing.T) {
	for _, v := range []struct{ name, hex, want string }{
		{"nothing", "", "EOF"},
		{"truncated prefix", "5050827d08", "the terminal closed the connection in mid-frame"},
		{"truncated header", "5050827d08000000d007", "the terminal closed the connection in mid-frame"},
		{"no header at all", "5050827d08000000", "the terminal closed the connection in mid-frame"},
		{"truncated data", "5050827d0c000000d00761d62ffb03007ef4", "the terminal closed the connection in mid-frame"},
		{"too small", "5050827d07000000d007fffc2ffb00", "a frame of 7 bytes is announced; 8 to 1048584 are possible"},
		{"oversized", "5050827d09001000d007fffc2ffb0000", "a frame of 1048585 bytes is announced; 8 to 1048584 are possible"},
		{"hostile", "5050827dffffffffd007fffc2ffb0000", "a frame of 4294967295 bytes is announced; 8 to 1048584 are possible"},
		{"garbled magic", "485454502f312e3120343030", "not a frame: it starts with 48545450"},
		{"garbled", "5050827d08000000d007fffc2ffb0100", "frame with checksum fcff, want fcfe"},
		{"checksum one too low", "5050827d08000000d007fefc2ffb0000", "frame with checksum fcfe, want fcff"},
	} {
		_, err := readFrame(bytes.NewReader(unhex(t, v.hex)))
		if err == nil || err.Error() != v.want {
			t.Errorf("%s: error %v, want %v", v.name, err, v.want)
		}
	}
}

// TestEditedRecording reads a frame that its recorder edited: the checksum is one off, the contents are right.
func TestEditedRecording(t *testing.T) {
	f, err := readFrame(bytes.NewReader(unhex(t, "5050827d15000000d007a7625c3c160000b4130000b4130000cdef2300")))
	if _, ok := errors.AsType[*checksumError](err); !ok {
		t.Fatalf("error %v", err)
	}
	if n, err := announced("", f.data, 1); n != 5044 || err != nil || f.reply != 22 {
		t.Errorf("announces %d, %v", n, err)
	}
}

func TestCursorRoundTrip(t *testing.T) {
	for _, c := range []cursor{{}, {Count: -1}, {Seen: 2, Count: 2, Size: 40, Tail: make([]byte, 8)}, {Seen: 100, Count: 0, Size: 49, Prefix: true, Wrapped: true, Tail: make([]byte, 128)}} {
		got, ok := parseCursor(c.text())
		if !ok || got.text() != c.text() {
			t.Errorf("%+v came back as %+v, %v", c, got, ok)
		}
	}
	for _, s := range []string{"", "x", "{", `{"n":1,"c":1,"size":40}`, `{"n":1,"c":1,"size":41,"tail":"AAAAAA=="}`, `{"n":-1,"size":40}`, `{"n":0,"tail":"AAAAAA=="}`} {
		if c, ok := parseCursor(s); ok {
			t.Errorf("%q is %+v", s, c)
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, v := range vectors {
		f.Add(unhex(f, v.hex))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		for {
			before := r.Len()
			got, err := readFrame(r)
			if err != nil {
				return
			}
			used := b[len(b)-before : len(b)-r.Len()]
			if again := got.append(nil); !bytes.Equal(again, used) {
				t.Fatalf("read %x, written again %x", used, again)
			}
		}
	})
}

func FuzzRecords(f *testing.F) {
	for _, s := range []string{
		"0d00393939313131333333000000000000000000000000000000016bb368230000000000ff0000000e003131323234343838000000000000000000000000000000000f7ef41c32010000000000000000",
		"0d00393939313131333333000000000000000000000000000000016bb368230000000000ff000000ff3235350000000000",
		"15000000ec154f23000000000000000016000000857f4f230100000000000000",
	} {
		f.Add(unhex(f, s), 2, 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, count, cut int) {
		for _, want := range []int{0, 16, 40, 49} {
			l, err := findLayout(b, len(b), count, want, 2027)
			if err != nil {
				continue
			}
			n := 0
			d := decoder{layout: l, enc: encodingUTF8, same: newOccurrences(), emit: func(p []gatepost.Record) error {
				for _, r := range p {
					if u := r.Data.(gatepost.Punch).User; !strings.HasPrefix(r.Key, u+"|"+string(r.Wall)+"|") {
						t.Fatalf("key %q of %+v", r.Key, r)
					}
				}
				n += len(p)
				return nil
			}}
			at := 0
			if len(b) > 0 {
				at = int(uint(cut) % uint(len(b)))
			}
			if err := errors.Join(d.push(b[:at]), d.push(b[at:]), d.flush()); err != nil {
				t.Fatal(err)
			}
			if n != len(b)/l.Size {
				t.Fatalf("%d records of %d bytes in %d", n, l.Size, len(b))
			}
		}
	})
}

func FuzzUsers(f *testing.F) {
	f.Add(unhex(f, "0e000631323334354e7565766f0000008f19000000010000a845ab00"), 1)
	f.Add(make([]byte, 72), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		size, err := userSize(b, n)
		if err != nil {
			return
		}
		for ; len(b) >= size; b = b[size:] {
			encodingUTF8.user(b[:size])
			encodingLatin1.user(b[:size])
		}
	})
}

func FuzzEvent(f *testing.F) {
	for _, v := range vectors {
		f.Add(unhex(f, v.data))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, h := range decodeAttLog(b) {
			h.wall()
		}
		decodeAlarm(b)
	})
}

func FuzzCursor(f *testing.F) {
	f.Add(cursor{Seen: 1, Count: 1, Size: 40, Tail: make([]byte, 4)}.text())
	f.Fuzz(func(t *testing.T, s string) {
		c, ok := parseCursor(s)
		if !ok {
			return
		}
		if len(c.prints()) > known || len(c.prints()) > c.Seen {
			t.Fatalf("%+v", c)
		}
		if again, ok := parseCursor(c.text()); !ok || again.text() != c.text() {
			t.Fatalf("%+v came back as %+v", c, again)
		}
	})
}

func BenchmarkDecode40(b *testing.B) {
	const n = 100_000
	log := make([]byte, 0, n*recordText)
	rec := make([]byte, recordText)
	for i := range n {
		copy(rec[2:], fmt.Sprintf("%06d", i%3000))
		rec[26] = 1
		le.PutUint32(rec[27:], 0x2368B36B+uint32(i*7))
		log = append(log, rec...)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		got := 0
		d := decoder{layout: layout{Size: recordText}, enc: encodingUTF8, same: newOccurrences(), emit: func(rs []gatepost.Record) error {
			got += len(rs)
			return nil
		}}
		for p := log; len(p) > 0; {
			k := min(len(p), zkproto.MaxChunk)
			if err := d.push(p[:k]); err != nil {
				b.Fatal(err)
			}
			p = p[k:]
		}
		if err := d.flush(); err != nil || got != n {
			b.Fatal(got, err)
		}
	}
}
