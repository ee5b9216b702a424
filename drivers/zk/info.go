package zk

import (
	"context"
	"errors"
	"strings"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// extras are options worth showing an installer.
var extras = []string{"~PIN2Width", "LockOn", "WorkCode", "DeviceID"}

// Inspect asks the terminal for what it tells about itself. A terminal that refuses some of it is none the worse.
func (s *session) Inspect(ctx context.Context) (gatepost.Info, error) {
	info := gatepost.Info{Doors: s.Doors, Options: map[string]string{}}
	for _, o := range []struct {
		name string
		into *string
	}{
		{"~SerialNumber", &info.Serial},
		{"~DeviceName", &info.Model},
		{"~Platform", &info.Platform},
		{"MAC", &info.MAC},
	} {
		v, err := s.option(ctx, o.name)
		if err != nil {
			return info, err
		}
		*o.into = v
	}
	for _, name := range extras {
		v, err := s.option(ctx, name)
		if err != nil {
			return info, err
		}
		if v != "" {
			info.Options[strings.TrimPrefix(name, "~")] = v
		}
	}
	b, err := s.l.do(ctx, normal, "get the version", zkproto.CmdGetVersion, nil)
	if err = unlessRefused(err); err != nil {
		return info, err
	}
	info.Firmware = s.tidy(b)
	info.Counts, err = s.freeSizes(ctx)
	return info, err
}

// unlessRefused forgets that a terminal answered with a no.
func unlessRefused(err error) error {
	if _, refused := errors.AsType[replyError](err); refused {
		return nil
	}
	return err
}

// option reads one option; empty where the terminal has none of that name.
func (s *session) option(ctx context.Context, name string) (string, error) {
	b, err := s.l.do(ctx, normal, "read option "+name, zkproto.CmdOptionRead, append([]byte(name), 0))
	if err != nil {
		return "", unlessRefused(err)
	}
	return s.optionValue(b), nil
}

// optionValue is what follows the first "=" of "name=value"; some firmware writes two.
func (s *session) optionValue(b []byte) string {
	for i, c := range b {
		if c == '=' {
			return strings.TrimLeft(s.tidy(b[i+1:]), "=")
		}
	}
	return ""
}

func (s *session) tidy(b []byte) string {
	t, _ := s.Encoding.text(field(b))
	return strings.TrimSpace(t)
}

// sizes names the counts of a terminal by their place in the answer.
var sizes = map[int]string{
	zkproto.SizeUsers:     "users",
	zkproto.SizeFingers:   "fingers",
	zkproto.SizeRecords:   "records",
	zkproto.SizeOpLog:     "oplog",
	zkproto.SizeAdmins:    "admins",
	zkproto.SizePasswords: "passwords",
	zkproto.SizeFingerCap: "fingers_capacity",
	zkproto.SizeUserCap:   "users_capacity",
	zkproto.SizeRecordCap: "records_capacity",
	zkproto.SizeFaces:     "faces",
	zkproto.SizeFaceCap:   "faces_capacity",
}

// freeSizes asks for the counts. What the terminal does not tell is missing: it answers 80, 92, 112 or (WL10) 4 bytes.
func (s *session) freeSizes(ctx context.Context) (map[string]int, error) {
	b, err := s.l.do(ctx, normal, "get the counts", zkproto.CmdGetFreeSizes, nil)
	if err != nil {
		if _, refused := errors.AsType[replyError](err); refused {
			return nil, nil
		}
		return nil, err
	}
	return decodeSizes(b), nil
}

func decodeSizes(b []byte) map[string]int {
	n := make(map[string]int, len(sizes))
	for i, name := range sizes {
		if 4*i+4 <= len(b) {
			if v := le.Uint32(b[4*i:]); v <= maxSet {
				n[name] = int(v)
			}
		}
	}
	return n
}

// level is how full the log is; count is -1 where the terminal does not say.
func (s *session) level(ctx context.Context) (count, capacity int, err error) {
	n, err := s.freeSizes(ctx)
	if err != nil {
		return 0, 0, err
	}
	count, ok := n["records"]
	if !ok {
		count = -1
	}
	return count, n["records_capacity"], nil
}
