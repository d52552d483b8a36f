// Package remote reads a file of a snapshot from where its chunks are in an object store, in the process that serves a machine's memory. It is given a link to each chunk
// and no credentials, looks names and authorities up before it loses its rights to, and returns no byte whose chunk's digest it has not compared.
package remote

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tartarus-sandbox/tartarus/internal/snapshot"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/pagefault"
)

// Kind is the source's kind in a page-fault handler.
const Kind = "chunks"

// Spec is a file, as Open gets it.
type Spec struct {
	ChunkSize int64   `json:"chunkSize"` // of all but the last
	Chunks    []Chunk `json:"chunks"`
}

// Chunk is a part of the file. One without a link is zeros.
type Chunk struct {
	URL  string `json:"url,omitempty"`
	Sum  string `json:"sum,omitempty"` // SHA-256 of its bytes, in hex
	Size int64  `json:"size"`
}

// Describe makes the Spec, in JSON, of a file with these parts, and tells how long the file is.
func Describe(links []snapshot.Link) (json.RawMessage, int64, error) {
	s, size := Spec{ChunkSize: snapshot.ChunkSize}, int64(0)
	for _, l := range links {
		s.Chunks = append(s.Chunks, Chunk{URL: l.URL, Sum: l.Sum, Size: l.Size})
		size += l.Size
	}
	raw, err := json.Marshal(s)
	return raw, size, err
}

const (
	// atOnce is how many chunks are fetched at the same time, and kept how many stay unpacked: 4 MiB each, and as much again while one is on its way. Together with
	// what unpacks them this is under 64 MiB, which the handler's group has for it.
	atOnce = 3
	kept   = 4

	// tries and tryTime bound the fetching of one chunk: an object store that restarts is back within a minute.
	tries   = 12
	tryTime = 30 * time.Second
	// lastWait is the longest wait between two tries; the first is a tenth of a second, and each twice the one before.
	lastWait = 10 * time.Second

	// lookTime bounds looking up where the store is.
	lookTime = 10 * time.Second

	maxChunk = 16 << 20
)

// Open opens a file, as a pagefault.Opener. It still has this process's rights, and uses them to learn whom it will talk to.
func Open(raw json.RawMessage) (pagefault.Source, error) {
	var s Spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("open chunks: %w", err)
	}
	f, err := newFile(s)
	if err != nil {
		return nil, fmt.Errorf("open chunks: %w", err)
	}
	return f, nil
}

func newFile(s Spec) (*file, error) {
	if s.ChunkSize <= 0 || s.ChunkSize > maxChunk || s.ChunkSize%pagefault.Unit != 0 {
		return nil, fmt.Errorf("chunks of %d bytes", s.ChunkSize)
	}
	f := &file{spec: s, slots: make(chan struct{}, atOnce), chunks: map[int]*chunk{}, wait: pause}
	hosts := map[string]bool{}
	for i, c := range s.Chunks {
		if c.Size <= 0 || c.Size > s.ChunkSize || c.Size != s.ChunkSize && i != len(s.Chunks)-1 || (c.URL == "") != (c.Sum == "") {
			return nil, fmt.Errorf("chunk %d cannot be", i)
		}
		f.size += c.Size
		if c.URL == "" {
			continue
		}
		u, err := url.Parse(c.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("chunk %d has no link that can be followed", i) // without the link: it is a key
		}
		hosts[u.Host] = true
	}
	var err error
	if f.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(atOnce), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(uint64(s.ChunkSize))); err != nil {
		return nil, err
	}
	f.client, err = client(hosts)
	return f, err
}

// client makes one that needs no file of the host any more: names are looked up and authorities read now.
func client(hosts map[string]bool) (*http.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	where := map[string][]string{}
	for host := range hosts {
		name, _, err := net.SplitHostPort(host)
		if err != nil {
			name = host
		}
		if where[name], err = net.DefaultResolver.LookupHost(ctx, name); err != nil {
			return nil, err
		}
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		return nil, err
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		name, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		var d net.Dialer
		for _, ip := range where[name] {
			var conn net.Conn
			if conn, err = d.DialContext(ctx, network, net.JoinHostPort(ip, port)); err == nil {
				return conn, nil
			}
		}
		return nil, errors.Join(err, errors.New("nobody answers"))
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dial, MaxIdleConnsPerHost: atOnce, TLSHandshakeTimeout: tryTime, ResponseHeaderTimeout: tryTime,
			TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("the store sends elsewhere") },
	}, nil
}

// file is a file whose chunks come as they are read.
type file struct {
	spec    Spec
	size    int64
	client  *http.Client
	decoder *zstd.Decoder
	slots   chan struct{}       // held while a chunk is fetched
	wait    func(time.Duration) // between two tries

	mu     sync.Mutex
	chunks map[int]*chunk
	recent []int // those that are unpacked, the latest last
}

// chunk is one that is unpacked, or on its way.
type chunk struct {
	once  sync.Once
	plain []byte
	err   error
}

// Hole implements pagefault.Holes.
func (f *file) Hole(at, n int64) bool {
	for i := at / f.spec.ChunkSize; i*f.spec.ChunkSize < at+n && i < int64(len(f.spec.Chunks)); i++ {
		if f.spec.Chunks[i].URL != "" {
			return false
		}
	}
	return true
}

// ReadAt implements io.ReaderAt.
func (f *file) ReadAt(b []byte, at int64) (n int, err error) {
	for n < len(b) {
		if at < 0 || at >= f.size {
			return n, io.EOF
		}
		i, from := int(at/f.spec.ChunkSize), at%f.spec.ChunkSize
		c := f.spec.Chunks[i]
		m := int(min(int64(len(b)-n), c.Size-from))
		if c.URL == "" {
			clear(b[n : n+m])
		} else {
			plain, err := f.chunk(i)
			if err != nil {
				return n, err
			}
			copy(b[n:n+m], plain[from:])
		}
		n, at = n+m, at+int64(m)
	}
	return n, nil
}

// chunk returns a chunk's bytes. Of several who want it one fetches it.
func (f *file) chunk(i int) ([]byte, error) {
	f.mu.Lock()
	c := f.chunks[i]
	if c == nil {
		c = &chunk{}
		f.chunks[i] = c
	}
	f.mu.Unlock()
	c.once.Do(func() {
		f.slots <- struct{}{}
		defer func() { <-f.slots }()
		c.plain, c.err = f.fetch(i)
		f.keep(i, c.err == nil)
	})
	return c.plain, c.err
}

// keep notes that a chunk has come, and forgets the oldest. One that did not come may be wanted again.
func (f *file) keep(i int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !ok {
		delete(f.chunks, i)
		return
	}
	f.recent = append(f.recent, i)
	if len(f.recent) > kept {
		delete(f.chunks, f.recent[0])
		f.recent = append(f.recent[:0], f.recent[1:]...)
	}
}

// fetch gets a chunk, again and again for as long as that may help.
func (f *file) fetch(i int) ([]byte, error) {
	var err error
	for try := range tries {
		if try > 0 {
			f.wait(min(lastWait, 100*time.Millisecond<<(try-1)))
		}
		var plain []byte
		var final bool
		if plain, final, err = f.get(i); err == nil {
			return plain, nil
		}
		if final {
			break
		}
	}
	return nil, fmt.Errorf("fetch chunk %d: %w", i, err)
}

// get asks for a chunk once. final says that asking again is of no use.
func (f *file) get(i int) (plain []byte, final bool, err error) {
	c := f.spec.Chunks[i]
	ctx, cancel := context.WithTimeout(context.Background(), tryTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return nil, true, errors.New("the link cannot be followed")
	}
	res, err := f.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) { // without the link
			err = ue.Err
		}
		return nil, false, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, res.StatusCode/100 == 4 && res.StatusCode != http.StatusTooManyRequests, fmt.Errorf("the store answers %s", res.Status)
	}
	most := c.Size + c.Size/64 + 1024 // zstd adds less than 1 % and a header to what it cannot pack
	packed, err := io.ReadAll(io.LimitReader(res.Body, most+1))
	if err != nil {
		return nil, false, err
	}
	if int64(len(packed)) > most {
		return nil, true, errors.New("it is longer than anything stored")
	}
	if plain, err = f.decoder.DecodeAll(packed, make([]byte, 0, c.Size)); err != nil {
		return nil, true, fmt.Errorf("it is damaged: %w", err)
	}
	if sum := sha256.Sum256(plain); int64(len(plain)) != c.Size || hex.EncodeToString(sum[:]) != c.Sum {
		return nil, true, errors.New("it is damaged: it is not what was stored")
	}
	return plain, false, nil
}

// Close implements io.Closer.
func (f *file) Close() error {
	f.client.CloseIdleConnections()
	f.decoder.Close()
	return nil
}

func pause(d time.Duration) { time.Sleep(d) }
