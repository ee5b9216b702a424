package zk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gatepost"
	"gatepost/drivers/zk/zkproto"
)

// A time is packed into a u32 as if every month had 31 days, from the year 2000:
// (((y*12 + month-1)*31 + day-1)*24 + hour)*3600 and so on. It is local wall time, and dates that no calendar has exist.

// unpack gives the parts; the year runs to 2133.
func unpack(v uint32) (year, month, day, hour, minute, second int) {
	n := int(v)
	second, n = n%60, n/60
	minute, n = n%60, n/60
	hour, n = n%24, n/24
	day, n = n%31+1, n/31
	month, n = n%12+1, n/12
	return 2000 + n, month, day, hour, minute, second
}

// pack is the reverse for 2000 to 2099.
func pack(year, month, day, hour, minute, second int) uint32 {
	return uint32((((year%100*12+month-1)*31+day-1)*24+hour)*3600 + minute*60 + second)
}

// appendWall appends what [gatepost.NewWall] spells, without making a string of it.
func appendWall(b []byte, year, month, day, hour, minute, second int) []byte {
	two := func(sep byte, n int) { b = append(b, sep, byte('0'+n/10), byte('0'+n%10)) }
	b = append(b, byte('0'+year/1000), byte('0'+year/100%10), byte('0'+year/10%10), byte('0'+year%10))
	two('-', month)
	two('-', day)
	two('T', hour)
	two(':', minute)
	two(':', second)
	return b
}

// realDate says whether a calendar has it and a terminal can mean it.
func realDate(year, month, day int) bool {
	return year < 2100 && (day <= 28 || time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).Day() == day)
}

// Time asks the terminal for its wall time.
func (s *session) Time(ctx context.Context) (gatepost.Wall, error) {
	b, err := s.l.do(ctx, normal, "get the time", zkproto.CmdGetTime, nil)
	if err != nil {
		return "", err
	}
	if len(b) < 4 {
		return "", fmt.Errorf("get the time: an answer of %d bytes, want 4", len(b))
	}
	return gatepost.NewWall(unpack(le.Uint32(b))), nil
}

// clockSlack is how far the clock may have run between setting and reading it back.
const clockSlack = 2 * time.Second

// SetTime sets the terminal's clock and reads it back.
func (s *session) SetTime(ctx context.Context, w gatepost.Wall) error {
	want, mark := w.In(time.UTC)
	if mark != "" || want.Year() < 2000 || want.Year() > 2099 {
		return &gatepost.Fault{Class: gatepost.Permanent, Err: fmt.Errorf("set the time: a terminal cannot hold %q; 2000 to 2099 are possible", w)}
	}
	v := pack(want.Year(), int(want.Month()), want.Day(), want.Hour(), want.Minute(), want.Second())
	if _, err := s.l.do(ctx, normal, "set the time", zkproto.CmdSetTime, le.AppendUint32(nil, v)); err != nil {
		return err
	}
	if _, err := s.l.do(ctx, normal, "refresh after setting the time", zkproto.CmdRefreshData, nil); err != nil {
		if _, refused := errors.AsType[replyError](err); !refused {
			return err
		}
	}
	got, err := s.Time(ctx)
	if err != nil {
		return err
	}
	if t, mark := got.In(time.UTC); mark != "" || t.Sub(want).Abs() > clockSlack+time.Duration(s.l.rtt.Load()) {
		return fmt.Errorf("set the time: the terminal was told %s and says %s", w, got)
	}
	return nil
}
