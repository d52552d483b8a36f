package storetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
)

// Blobs holds an object store to the comment of snapshot.Blobs. open gives an empty one.
func Blobs(t *testing.T, open func(t *testing.T) snapshot.Blobs) {
	for name, f := range map[string]func(*testing.T, snapshot.Blobs){
		"round trip": blobRoundTrip, "absent": blobAbsent, "list": blobList, "large": blobLarge, "broken": blobBroken, "at once": blobAtOnce,
		"cancelled": blobCancelled,
	} {
		t.Run(name, func(t *testing.T) { f(t, open(t)) })
	}
}

func putBlob(t *testing.T, b snapshot.Blobs, name, body string) {
	t.Helper()
	if err := b.Put(t.Context(), name, strings.NewReader(body)); err != nil {
		t.Fatal("put: ", err)
	}
}

func getBlob(t *testing.T, b snapshot.Blobs, name string) string {
	t.Helper()
	r, err := b.Get(t.Context(), name)
	if err != nil {
		t.Fatal("get: ", err)
	}
	defer r.Close()
	body, err := io.ReadAll(r)
	if err != nil {
		t.Fatal("read: ", err)
	}
	return string(body)
}

func blobRoundTrip(t *testing.T, b snapshot.Blobs) {
	for _, body := range []string{"", "x", strings.Repeat("abc", 100_000)} {
		before := time.Now().Add(-time.Minute) // clocks of stores differ, and some count in seconds
		putBlob(t, b, "chunks/ab/abcdef", body)
		if got := getBlob(t, b, "chunks/ab/abcdef"); got != body {
			t.Fatalf("got %d bytes back, want %d", len(got), len(body))
		}
		h, err := b.Head(t.Context(), "chunks/ab/abcdef")
		if err != nil || h.Size != int64(len(body)) || h.Name != "chunks/ab/abcdef" || h.Modified.Before(before) {
			t.Fatalf("head: %+v, %v", h, err)
		}
	}
	for range 2 { // the second time there is nothing to delete
		if err := b.Delete(t.Context(), "chunks/ab/abcdef"); err != nil {
			t.Fatal("delete: ", err)
		}
	}
	if _, err := b.Head(t.Context(), "chunks/ab/abcdef"); !tartarus.Is(err, tartarus.NotFound) {
		t.Fatal("head of a deleted blob: ", err)
	}
}

func blobAbsent(t *testing.T, b snapshot.Blobs) {
	if _, err := b.Get(t.Context(), "snapshots/none.json"); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("get: ", err)
	}
	if _, err := b.Head(t.Context(), "snapshots/none.json"); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("head: ", err)
	}
	putBlob(t, b, "snapshots/a/b.json", "x")
	if _, err := b.Head(t.Context(), "snapshots/a"); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("a part of a name is no blob: ", err)
	}
}

func blobList(t *testing.T, b snapshot.Blobs) {
	want := []string{"chunks/00/a", "chunks/00/b", "chunks/01/a"}
	for _, n := range append([]string{"snapshots/a.json"}, want...) {
		putBlob(t, b, n, n)
	}
	var got []string
	err := b.List(t.Context(), "chunks/", func(o snapshot.Blob) error {
		if o.Size != int64(len(o.Name)) {
			t.Errorf("%s has %d bytes", o.Name, o.Size)
		}
		got = append(got, o.Name)
		return nil
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("list: %q, %v; want %q", got, err, want)
	}
	if err := b.List(t.Context(), "nothing/", func(snapshot.Blob) error { return errors.New("there is something") }); err != nil {
		t.Error("empty list: ", err)
	}
	stop := errors.New("enough")
	if err := b.List(t.Context(), "", func(snapshot.Blob) error { return stop }); !errors.Is(err, stop) {
		t.Error("the visitor's error is lost: ", err)
	}
	n := 0
	for i := range 1100 { // over one page of S3
		putBlob(t, b, fmt.Sprintf("many/%04d", i), "")
	}
	err = b.List(t.Context(), "many/", func(o snapshot.Blob) error {
		if o.Name != fmt.Sprintf("many/%04d", n) {
			return fmt.Errorf("blob %d is %s", n, o.Name)
		}
		n++
		return nil
	})
	if err != nil || n != 1100 {
		t.Errorf("list of many: %d, %v", n, err)
	}
}

// blobLarge is more than a store sends at once, from a reader that cannot be rewound.
func blobLarge(t *testing.T, b snapshot.Blobs) {
	const size = 40<<20 + 17
	src := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{1}), size) }
	want := sha256.New()
	if _, err := io.Copy(want, src()); err != nil {
		t.Fatal(err)
	}
	if err := b.Put(t.Context(), "large", src()); err != nil {
		t.Fatal("put: ", err)
	}
	r, err := b.Get(t.Context(), "large")
	if err != nil {
		t.Fatal("get: ", err)
	}
	defer r.Close()
	got := sha256.New()
	if n, err := io.Copy(got, r); err != nil || n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Fatalf("another %d bytes came back: %v", n, err)
	}
}

// blobBroken is a source that fails in the middle: what was there stays.
func blobBroken(t *testing.T, b snapshot.Blobs) {
	boom := errors.New("boom")
	for _, size := range []int64{1000, 30 << 20} {
		broken := func() io.Reader {
			return io.MultiReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), failing{boom})
		}
		name := fmt.Sprint("broken/", size)
		if err := b.Put(t.Context(), name, broken()); !errors.Is(err, boom) {
			t.Errorf("%d bytes: the source's error is lost: %v", size, err)
		}
		if _, err := b.Head(t.Context(), name); !tartarus.Is(err, tartarus.NotFound) {
			t.Errorf("%d bytes: something appeared: %v", size, err)
		}
		putBlob(t, b, name, "whole")
		if err := b.Put(t.Context(), name, broken()); err == nil {
			t.Errorf("%d bytes: no error", size)
		}
		if got := getBlob(t, b, name); got != "whole" {
			t.Errorf("%d bytes: %d bytes took the place of what was there", size, len(got))
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// blobAtOnce has the same name written by many: one of them wins, whole.
func blobAtOnce(t *testing.T, b snapshot.Blobs) {
	var g errgroup.Group
	for i := range 8 {
		g.Go(func() error {
			return b.Put(t.Context(), "same", strings.NewReader(strings.Repeat(string(rune('a'+i)), 100_000)))
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	got := getBlob(t, b, "same")
	if len(got) != 100_000 || strings.Trim(got, got[:1]) != "" {
		t.Fatalf("got a mixture of %d bytes", len(got))
	}
}

func blobCancelled(t *testing.T, b snapshot.Blobs) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Put(ctx, "cancelled", strings.NewReader("x")); err == nil {
		t.Error("put with an ended context succeeded")
	}
	if _, err := b.Head(t.Context(), "cancelled"); !tartarus.Is(err, tartarus.NotFound) {
		t.Error("something appeared: ", err)
	}
}
