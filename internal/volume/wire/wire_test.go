package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestRoundTrip(t *testing.T) {
	r := &Request{
		ID: 7, Op: Rename, Again: true, Keep: true, Valid: 3, Mode: 0o644, UID: 1000, GID: 5, Offset: -1, Size: 1 << 40, Atime: -5, Mtime: 1e18,
		Path: strings.Repeat("p", MaxPath), Other: "o", Data: make([]byte, MaxData),
	}
	got, err := ReadRequest(bytes.NewReader(r.Append(nil)))
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Fatalf("got %+v, %v", got, err)
	}
	for _, p := range []*Reply{
		{ID: 1 << 60, Errno: 2, Data: []byte{}},
		{ID: 2, Attr: &Attr{1, 2, 3, 4, 5, 6, -7, 8, 9}, Data: []byte("data")},
	} {
		got, err := ReadReply(bytes.NewReader(p.Append(nil)))
		if err != nil || !reflect.DeepEqual(got, p) {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	entries := []Entry{{1, 2, "a"}, {3, 4, strings.Repeat("n", 255)}, {5, 6, ""}}
	var b []byte
	for _, e := range entries {
		b = AppendEntry(b, e)
	}
	if got, err := Entries(b); err != nil || !reflect.DeepEqual(got, entries) {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := Entries(b[:len(b)-1]); err == nil {
		t.Fatal("a cut listing was read")
	}
}

// Whatever a guest sends, it is a request within the bounds or an error.
func FuzzReadRequest(f *testing.F) {
	f.Add((&Request{ID: 1, Op: Write, Path: "a/b", Data: []byte("x")}).Append(nil))
	f.Add((&Request{ID: 1, Op: Rename, Path: "a", Other: "b"}).Append(nil))
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadRequest(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(r.Path) > MaxPath || len(r.Other) > MaxPath || len(r.Data) > MaxData {
			t.Fatalf("out of bounds: %d %d %d", len(r.Path), len(r.Other), len(r.Data))
		}
		again, err := ReadRequest(bytes.NewReader(r.Append(nil)))
		if err != nil || !reflect.DeepEqual(again, r) {
			t.Fatalf("%+v became %+v, %v", r, again, err)
		}
	})
}
