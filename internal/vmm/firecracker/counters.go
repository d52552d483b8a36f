package firecracker

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"sync"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

const (
	// mostLine bounds one account of the monitor's. Measured: 12 KB with two drives and a network interface.
	mostLine = 128 << 10

	// accountEvery is how often an account is read at most: the monitor writes one a minute by itself, and one whenever it is asked.
	accountEvery = 20 * time.Millisecond

	// mostCount bounds one count of an account: a terabyte between two of them is beyond every device.
	mostCount = 1 << 40
)

// counters add up the accounts that a monitor writes into a named pipe: lines of JSON, each with what was counted since the one before.
type counters struct {
	pipe *os.File
	done chan struct{}

	mu    sync.Mutex
	sum   tartarus.DeviceCounts // not taken yet
	lines int64                 // read so far
	more  chan struct{}         // closed when a line has come
}

// account is what is read of a line; src: the monitor's src/vmm/src/logger/metrics.rs.
type account struct {
	Block struct {
		Read      int64 `json:"read_bytes"`
		Written   int64 `json:"write_bytes"`
		Throttled int64 `json:"rate_limiter_throttled_events"`
	} `json:"block"`
	Net struct {
		Received  int64 `json:"rx_bytes_count"`
		Sent      int64 `json:"tx_bytes_count"`
		RXLimited int64 `json:"rx_rate_limiter_throttled"`
		TXLimited int64 `json:"tx_rate_limiter_throttled"`
	} `json:"net"`
	UART struct {
		Written int64 `json:"write_count"`
	} `json:"uart"`
	Seccomp struct {
		Faults int64 `json:"num_faults"`
	} `json:"seccomp"`
}

// count begins to read a named pipe until close.
func count(path string) (*counters, error) {
	pipe, err := openPipe(path)
	if err != nil {
		return nil, err
	}
	c := &counters{pipe: pipe, done: make(chan struct{}), more: make(chan struct{})}
	go c.read()
	return c, nil
}

func (c *counters) read() {
	defer close(c.done)
	var line []byte
	var last time.Time
	skip := false // the rest of a line that is too long
	buf := make([]byte, 16<<10)
	for {
		n, err := c.pipe.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) > 0; {
			part, rest, ended := bytes.Cut(b, []byte("\n"))
			if b = rest; len(line)+len(part) > mostLine {
				line, skip = line[:0], true
			}
			if !skip {
				line = append(line, part...)
			}
			if !ended {
				break
			}
			if !skip {
				c.add(line)
			}
			line, skip = line[:0], false
			if time.Since(last) < accountEvery { // what writes more often has a reason of its own; its pipe is full, and it goes on without
				time.Sleep(accountEvery)
			}
			last = time.Now()
		}
	}
}

// add counts a line. One that is none is left out.
func (c *counters) add(line []byte) {
	var a account
	if json.Unmarshal(line, &a) != nil {
		return
	}
	b := func(n int64) int64 { return min(max(n, 0), mostCount) }
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Add(tartarus.DeviceCounts{
		DiskRead: b(a.Block.Read), DiskWritten: b(a.Block.Written), NetReceived: b(a.Net.Received), NetSent: b(a.Net.Sent), SerialWritten: b(a.UART.Written),
		DiskThrottled: b(a.Block.Throttled), NetThrottled: b(a.Net.RXLimited) + b(a.Net.TXLimited), Forbidden: b(a.Seccomp.Faults),
	})
	c.lines++
	close(c.more)
	c.more = make(chan struct{})
}

// seen is how many lines have come.
func (c *counters) seen() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines
}

// after waits until more lines have come than n, or until ctx ends.
func (c *counters) after(ctx context.Context, n int64) {
	for {
		c.mu.Lock()
		lines, more := c.lines, c.more
		c.mu.Unlock()
		if lines > n {
			return
		}
		select {
		case <-more:
		case <-c.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// take returns what was counted since it was last called.
func (c *counters) take() tartarus.DeviceCounts {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.sum
	c.sum = tartarus.DeviceCounts{}
	return out
}

func (c *counters) close() {
	_ = c.pipe.Close()
	<-c.done
}
