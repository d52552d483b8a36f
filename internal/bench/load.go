package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// answerTime is how long an answer is waited for at least, and at most twice as long.
const answerTime = time.Minute

// clients are connections on which the same request is sent over and over. They speak HTTP with as little as that takes: what the clients use of
// the processors is missing from what is measured.
type clients []*poster

// dial connects n clients. The caller closes them.
func dial(ctx context.Context, to, secret, body string, n int) (clients, error) {
	var all clients
	for range n {
		p, err := newPoster(ctx, to, secret, body)
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, p)
	}
	return all, nil
}

func (all clients) close() error {
	for _, p := range all {
		_ = p.conn.Close() // everything that was asked for was read
	}
	return nil
}

// load sends n requests, each client one at a time, and says how long each took. A client whose connection fails sends no more.
func (all clients) load(ctx context.Context, n int, each func(status int, body []byte, took time.Duration, err error)) time.Duration {
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for _, p := range all {
		wg.Go(func() {
			for !p.broken && ctx.Err() == nil && next.Add(1) <= int64(n) {
				at := time.Now()
				status, body, err := p.post(ctx)
				p.broken = err != nil
				each(status, body, time.Since(at), err)
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// poster sends one request over and over on one connection.
type poster struct {
	addr    string
	conn    net.Conn
	in      *bufio.Reader
	used    time.Time // last
	bound   time.Time // when what is under way fails
	request []byte
	body    []byte
	broken  bool
}

// idleMost is how long a connection may have been idle to be used again: well below the 10 s after which the server closes one that has sent nothing yet.
const idleMost = 4 * time.Second

// maxAnswer bounds the body of an answer.
const maxAnswer = 1 << 20

func newPoster(ctx context.Context, to, secret, body string) (*poster, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	p := &poster{addr: u.Host, request: fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: %s\r\nX-API-KEY: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", u.RequestURI(), u.Host, secret, len(body), body)}
	return p, p.connect(ctx)
}

func (p *poster) connect(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: answerTime}).DialContext(ctx, "tcp", p.addr)
	if err == nil {
		p.conn, p.in, p.used, p.bound = conn, bufio.NewReader(conn), time.Now(), time.Time{}
	}
	return err
}

// post sends the request and reads the answer, whose body is valid until the next one.
func (p *poster) post(ctx context.Context) (status int, body []byte, err error) {
	now := time.Now()
	if now.Sub(p.used) > idleMost {
		_ = p.conn.Close() // there is nothing on it
		if err := p.connect(ctx); err != nil {
			return 0, nil, err
		}
	}
	p.used = now
	if p.bound.Sub(now) < answerTime {
		p.bound = now.Add(2 * answerTime)
		if err := p.conn.SetDeadline(p.bound); err != nil {
			return 0, nil, err
		}
	}
	if _, err := p.conn.Write(p.request); err != nil {
		return 0, nil, err
	}
	return p.answer()
}

// answer reads as much of the head of an answer as is needed to find its end.
func (p *poster) answer() (status int, body []byte, err error) {
	line, err := p.in.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if _, rest, ok := bytes.Cut(line, []byte("HTTP/1.1 ")); !ok || len(rest) < 3 {
		return 0, nil, fmt.Errorf("no answer: %.100q", line)
	} else if status, err = strconv.Atoi(string(rest[:3])); err != nil {
		return 0, nil, err
	}
	length := -1
	for {
		if line, err = p.in.ReadSlice('\n'); err != nil {
			return status, nil, err
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			length, err = strconv.Atoi(string(value))
		case bytes.EqualFold(name, []byte("Connection")) && bytes.EqualFold(value, []byte("close")):
			err = errors.New("the server closes the connection")
		}
		if err != nil {
			return status, nil, err
		}
	}
	if length < 0 || length > maxAnswer {
		return status, nil, fmt.Errorf("an answer of %d bytes", length)
	}
	p.body = slices.Grow(p.body[:0], length)[:length]
	_, err = io.ReadFull(p.in, p.body)
	return status, p.body, err
}
