// Command witness runs inside a sandbox and knows what everything it has must look like: memory that it changes all the time, files, tmpfs,
// open descriptors, a pipe and a listening socket. Asked over that socket, it hashes all of it and says what is not as it was.
package main

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	addr      = "127.0.0.1:7070"
	blockSize = 64 << 10
	blocks    = 64 << 20 / blockSize
	fileSize  = 8 << 20
)

// report is what the witness says.
type report struct {
	Born       string   `json:"born"`    // random, made when the process began
	Changes    int64    `json:"changes"` // of its memory so far
	Hashed     int64    `json:"hashed"`  // bytes, for this report
	Mismatches []string `json:"mismatches"`
}

func main() {
	var err error
	if len(os.Args) > 1 && os.Args[1] == "ask" {
		err = ask()
	} else {
		err = serve()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func ask() error {
	c, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = io.Copy(os.Stdout, c)
	return err
}

// witness holds what there is and how it must look.
type witness struct {
	mu      sync.Mutex
	born    string
	changes int64
	memory  []byte
	sums    [blocks][32]byte

	files   map[string][32]byte // by path
	open    *os.File            // of a file that was deleted
	opened  [32]byte
	log     *os.File // written to at its own offset
	written int64
	pipe    *os.File // the end to read from; what is in it was never read
	piped   []byte
	unread  *os.File // the end to write to, kept so that it does not close
}

func serve() error {
	w := &witness{memory: make([]byte, blocks*blockSize), files: map[string][32]byte{}}
	if err := w.begin(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go w.change()
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_ = json.NewEncoder(c).Encode(w.look()) // who hung up asks again
		c.Close()
	}
}

func (w *witness) begin() error {
	var born [16]byte
	rand.Read(born[:])
	w.born = hex.EncodeToString(born[:])
	for i := range blocks {
		rand.Read(w.block(i))
		w.sums[i] = sha256.Sum256(w.block(i))
	}
	content := make([]byte, fileSize)
	for _, path := range []string{"/home/user/witness/a", "/home/user/witness/deep/er/b", "/tmp/witness", "/dev/shm/witness"} {
		rand.Read(content)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			return err
		}
		w.files[path] = sha256.Sum256(content)
	}
	var err error
	if w.open, err = os.OpenFile("/tmp/deleted", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return err
	}
	rand.Read(content)
	if _, err := w.open.Write(content); err != nil {
		return err
	}
	w.opened = sha256.Sum256(content)
	if err := os.Remove("/tmp/deleted"); err != nil {
		return err
	}
	if w.log, err = os.Create("/home/user/witness/log"); err != nil {
		return err
	}
	w.pipe, w.unread, err = os.Pipe()
	if err != nil {
		return err
	}
	w.piped = bytes.Repeat([]byte(w.born), 64)
	_, err = w.unread.Write(w.piped)
	return err
}

func (w *witness) block(i int) []byte { return w.memory[i*blockSize : (i+1)*blockSize] }

// change rewrites block after block.
func (w *witness) change() {
	for {
		w.mu.Lock()
		i := mrand.IntN(blocks)
		src := mrand.NewChaCha8([32]byte{byte(w.changes), byte(w.changes >> 8), byte(w.changes >> 16), byte(i)})
		_, _ = src.Read(w.block(i)) // never fails
		w.sums[i] = sha256.Sum256(w.block(i))
		w.changes++
		w.mu.Unlock()
		time.Sleep(2 * time.Millisecond)
	}
}

// look hashes everything.
func (w *witness) look() report {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := report{Born: w.born, Changes: w.changes, Mismatches: []string{}}
	expect := func(what string, ok bool, n int) {
		r.Hashed += int64(n)
		if !ok {
			r.Mismatches = append(r.Mismatches, what)
		}
	}
	for i := range blocks {
		expect(fmt.Sprint("memory block ", i), sha256.Sum256(w.block(i)) == w.sums[i], blockSize)
	}
	for path, want := range w.files {
		b, err := os.ReadFile(path)
		expect(path, err == nil && sha256.Sum256(b) == want, len(b))
	}
	b, err := io.ReadAll(io.NewSectionReader(w.open, 0, fileSize+1))
	expect("descriptor of a deleted file", err == nil && sha256.Sum256(b) == w.opened, len(b))
	_, err = w.log.WriteString("x")
	w.written++
	at, seekErr := w.log.Seek(0, io.SeekCurrent)
	expect("offset of a descriptor", err == nil && seekErr == nil && at == w.written, 1)
	// The pipe is drained and filled again.
	got := make([]byte, len(w.piped))
	_, err = io.ReadFull(w.pipe, got)
	expect("pipe", err == nil && bytes.Equal(got, w.piped), len(got))
	if _, err := w.unread.Write(w.piped); err != nil {
		expect("pipe to write to", false, 0)
	}
	return r
}
