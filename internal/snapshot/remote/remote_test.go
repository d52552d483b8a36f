package remote

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testChunk = 2 * pagefault.Unit

// shop is a server with the chunks of some content, and how to read it.
type shop struct {
	content []byte
	spec    Spec
	asked   atomic.Int32
	// answer stands in for the server when it is not nil and returns true.
	answer func(w http.ResponseWriter, chunk int) bool
}

func newShop(t *testing.T, n int) *shop {
	t.Helper()
	s := &shop{content: make([]byte, n*testChunk-1000)}
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(s.content)
	if n > 1 {
		clear(s.content[testChunk:min(2*testChunk, len(s.content))]) // the second is a hole
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := map[int][]byte{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		i, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if s.answer == nil || !s.answer(w, i) {
			_, _ = w.Write(packed[i])
		}
	}))
	t.Cleanup(server.Close)
	s.spec.ChunkSize = testChunk
	for i := range n {
		part := s.content[i*testChunk : min((i+1)*testChunk, len(s.content))]
		c := Chunk{Size: int64(len(part))}
		if i != 1 {
			sum := sha256.Sum256(part)
			c.URL, c.Sum, packed[i] = server.URL+"/"+strconv.Itoa(i), hex.EncodeToString(sum[:]), enc.EncodeAll(part, nil)
		}
		s.spec.Chunks = append(s.spec.Chunks, c)
	}
	return s
}

func (s *shop) open(t *testing.T) *file {
	t.Helper()
	raw, err := json.Marshal(s.spec)
	if err != nil {
		t.Fatal(err)
	}
	src, err := Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = src.Close() })
	f := src.(*file)
	f.wait = func(time.Duration) {}
	return f
}

func TestReadsWhatWasStored(t *testing.T) {
	s := newShop(t, 7)
	f := s.open(t)
	var wg sync.WaitGroup
	for range 8 { // as many hands as a handler has
		wg.Go(func() {
			for at := 0; at < len(s.content); at += pagefault.Unit {
				b := make([]byte, min(pagefault.Unit, len(s.content)-at))
				if n, err := f.ReadAt(b, int64(at)); err != nil || n != len(b) || !bytes.Equal(b, s.content[at:at+n]) {
					t.Errorf("at %d: %d bytes, %v", at, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	all := make([]byte, len(s.content)+10)
	if n, err := f.ReadAt(all, 0); err != io.EOF || n != len(s.content) || !bytes.Equal(all[:n], s.content) {
		t.Errorf("all of it: %d bytes, %v", n, err)
	}
	if _, err := f.ReadAt(all, -1); err != io.EOF {
		t.Errorf("before it: %v", err)
	}
	for at, want := range map[int64]bool{0: false, testChunk: true, testChunk + pagefault.Unit: true, 2 * testChunk: false} {
		if got := f.Hole(at, pagefault.Unit); got != want {
			t.Errorf("a hole at %d: %t", at, got)
		}
	}
}

// TestOneFetchForMany holds that many who want a chunk cause one request.
func TestOneFetchForMany(t *testing.T) {
	s := newShop(t, 1)
	f := s.open(t)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := f.ReadAt(make([]byte, 10), 5); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestWhatTheStoreMayDo(t *testing.T) {
	fails := func(code, times int) func(http.ResponseWriter, int) bool {
		var n atomic.Int32
		return func(w http.ResponseWriter, _ int) bool {
			if int(n.Add(1)) > times {
				return false
			}
			w.WriteHeader(code)
			return true
		}
	}
	says := func(b []byte) func(http.ResponseWriter, int) bool {
		return func(w http.ResponseWriter, _ int) bool { _, _ = w.Write(b); return true }
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		answer func(http.ResponseWriter, int) bool
		want   string // of the error; empty when the bytes come
		asked  int32
	}{
		"is away for a while": {fails(503, 3), "", 4},
		"is away":             {fails(503, 1000), "503", tries},
		"has too much to do":  {fails(429, 2), "", 3},
		"has it no more":      {fails(404, 1000), "404", 1},
		"lets nobody in":      {fails(403, 1000), "403", 1},
		"sends rubbish":       {says([]byte("rubbish")), "damaged", 1},
		"sends another":       {says(enc.EncodeAll(make([]byte, testChunk), nil)), "not what was stored", 1},
		"sends a bomb":        {says(enc.EncodeAll(make([]byte, 64<<20), nil)), "damaged", 1},
		"sends no end":        {says(make([]byte, 2*testChunk)), "longer than anything", 1},
		"cuts it off":         {func(w http.ResponseWriter, _ int) bool { w.Header().Set("Content-Length", "1000"); return true }, "EOF", tries},
		"sends elsewhere": {func(w http.ResponseWriter, _ int) bool {
			w.Header().Set("Location", "http://169.254.169.254/")
			w.WriteHeader(302)
			return true
		}, "elsewhere", tries},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t, 1)
			s.answer = tc.answer
			f := s.open(t)
			_, err := f.ReadAt(make([]byte, 10), 0)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if n := s.asked.Load(); n != tc.asked {
				t.Errorf("%d requests, want %d", n, tc.asked)
			}
			if err != nil && strings.Contains(err.Error(), "127.0.0.1:") && strings.Contains(err.Error(), "/0") {
				t.Errorf("the link is in the error: %v", err)
			}
		})
	}
}

func TestSpecsThatCannotBe(t *testing.T) {
	good := Chunk{URL: "http://127.0.0.1:1/x", Sum: "00", Size: testChunk}
	for name, s := range map[string]Spec{
		"no chunk size":    {Chunks: []Chunk{good}},
		"odd chunk size":   {ChunkSize: 1000},
		"huge chunks":      {ChunkSize: maxChunk * 2},
		"too long":         {ChunkSize: testChunk, Chunks: []Chunk{{Size: testChunk + 1}}},
		"short in between": {ChunkSize: testChunk, Chunks: []Chunk{{Size: 5}, good}},
		"empty":            {ChunkSize: testChunk, Chunks: []Chunk{{}}},
		"no sum":           {ChunkSize: testChunk, Chunks: []Chunk{{URL: good.URL, Size: testChunk}}},
		"a file":           {ChunkSize: testChunk, Chunks: []Chunk{{URL: "file:///etc/passwd", Sum: "00", Size: testChunk}}},
	} {
		raw, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Open(raw); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	if _, err := Open(json.RawMessage("{")); err == nil {
		t.Error("no JSON: opened")
	}
}
