package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

var netApplets = map[string]applet{"wget": wget, "curl": curl, "nc": nc}

// request is what wget and curl have in common.
type request struct {
	method, url, body string
	headers           []string
	output            string // file; "" is stdout
	quiet, fail       bool
	showHead          bool
	follow            bool
	timeout           time.Duration
}

func (q *request) do(name string) error {
	if !strings.Contains(q.url, "://") {
		q.url = "http://" + q.url
	}
	if u, err := url.Parse(q.url); err != nil || u.Host == "" {
		return usage("%s: bad address", q.url)
	}
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	req, err := http.NewRequest(q.method, q.url, body)
	if err != nil {
		return usage("%s", err)
	}
	req.Header.Set("User-Agent", name+" (tartarus-tiny)")
	if q.body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, h := range q.headers {
		key, value, ok := strings.Cut(h, ":")
		if !ok {
			return usage("%s: bad header", h)
		}
		if strings.EqualFold(key, "host") {
			req.Host = strings.TrimSpace(value)
		}
		req.Header.Set(key, strings.TrimSpace(value))
	}
	client := &http.Client{Timeout: q.timeout}
	if !q.follow {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if q.fail && resp.StatusCode >= 400 {
		return fmt.Errorf("server answered %s", resp.Status)
	}
	out := os.Stdout
	if q.output != "" && q.output != "-" {
		if out, err = os.Create(q.output); err != nil {
			return err
		}
		defer out.Close()
	}
	if q.showHead {
		fmt.Fprintf(out, "%s %s\r\n", resp.Proto, resp.Status)
		resp.Header.Write(out)
		fmt.Fprint(out, "\r\n")
	}
	n, err := io.Copy(out, resp.Body)
	if err == nil && !q.quiet {
		fmt.Fprintf(os.Stderr, "%s: %d bytes saved in %s\n", name, n, q.output)
	}
	return err
}

func wget(args []string) error {
	o, err := parse("qO:T:t:P:", args, "output-document=O", "header=H", "post-data=D", "timeout=T", "quiet=q", "no-check-certificate=n")
	if err != nil {
		return err
	}
	if len(o.rest) != 1 {
		return usage("wget [-q] [-O FILE] [-T SECONDS] URL")
	}
	q := &request{method: "GET", url: o.rest[0], output: o.value["O"], quiet: o.has("q"), fail: true, follow: true}
	if o.has("T") {
		if q.timeout, err = duration(o.value["T"]); err != nil {
			return err
		}
	}
	if !o.has("O") {
		q.output = path.Base(strings.SplitN(q.url, "?", 2)[0])
		if strings.Count(strings.TrimSuffix(q.url, "/"), "/") < 3 || q.output == "/" {
			q.output = "index.html"
		}
	}
	q.quiet = q.quiet || q.output == "-"
	return q.do("wget")
}

// curl has the options that health checks and scripts use.
func curl(args []string) error {
	q := &request{quiet: true}
	var data []string
	var long = map[string]string{"request": "X", "header": "H", "data": "d", "data-raw": "d", "data-binary": "d", "output": "o", "max-time": "m",
		"connect-timeout": "m", "silent": "s", "show-error": "S", "fail": "f", "location": "L", "include": "i", "head": "I"}
	// -H and -d may come more than once, so that they are taken out first.
	var rest []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		if l, ok := long[strings.TrimPrefix(a, "--")]; ok && strings.HasPrefix(a, "--") {
			a = "-" + l
		}
		if (a == "-H" || a == "-d") && i+1 < len(args) {
			i++
			if a == "-H" {
				q.headers = append(q.headers, args[i])
			} else {
				data = append(data, args[i])
			}
			continue
		}
		rest = append(rest, a)
	}
	o, err := parse("X:o:Om:sSfLiIkvw:", rest)
	if err != nil {
		return err
	}
	if len(o.rest) != 1 {
		return usage("curl [-sSfLiI] [-X METHOD] [-H HEADER] [-d DATA] [-o FILE] [-m SECONDS] URL")
	}
	q.url, q.body, q.method, q.output = o.rest[0], strings.Join(data, "&"), "GET", o.value["o"]
	if q.body != "" {
		q.method = "POST"
	}
	if o.has("I") {
		q.method = "HEAD"
	}
	if o.has("X") {
		q.method = o.value["X"]
	}
	if o.has("O") {
		q.output = path.Base(q.url)
	}
	if o.has("m") {
		if q.timeout, err = duration(o.value["m"]); err != nil {
			return err
		}
	}
	q.fail, q.follow, q.showHead = o.has("f"), o.has("L"), o.has("i") || o.has("I")
	err = q.do("curl")
	var netErr net.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(usageError)):
		return err
	}
	if !o.has("s") || o.has("S") {
		fmt.Fprintln(os.Stderr, "curl:", plain(err))
	}
	switch {
	case strings.HasPrefix(err.Error(), "server answered"):
		return exitCode(22)
	case errors.As(err, &netErr) && netErr.Timeout():
		return exitCode(28)
	}
	return exitCode(7)
}

// nc connects, or listens with -l, and copies both ways.
func nc(args []string) error {
	o, err := parse("lup:w:zvnUkN", args)
	if err != nil {
		return err
	}
	network := "tcp"
	if o.has("u") {
		network = "udp"
	}
	addr := net.JoinHostPort(strings.Join(o.rest[:max(0, len(o.rest)-1)], ""), strings.Join(o.rest[max(0, len(o.rest)-1):], ""))
	switch {
	case o.has("U") && len(o.rest) == 1:
		network, addr = "unix", o.rest[0]
	case o.has("l") && o.has("p") && len(o.rest) <= 1:
		addr = net.JoinHostPort(strings.Join(o.rest, ""), o.value["p"])
	case o.has("l") && len(o.rest) == 1, len(o.rest) == 2:
	default:
		return usage("nc [-luzvU] [-p PORT] [-w SECONDS] [HOST] PORT")
	}
	wait := time.Duration(0)
	if o.has("w") {
		n, err := strconv.Atoi(o.value["w"])
		if err != nil {
			return usage("-w needs a number")
		}
		wait = time.Duration(n) * time.Second
	}
	var conn net.Conn
	if o.has("l") && network != "udp" {
		l, err := net.Listen(network, addr)
		if err != nil {
			return err
		}
		defer l.Close()
		if conn, err = l.Accept(); err != nil {
			return err
		}
	} else if conn, err = net.DialTimeout(network, addr, wait); err != nil {
		return err
	}
	defer conn.Close()
	if o.has("z") {
		return nil
	}
	var up sync.WaitGroup
	up.Go(func() {
		io.Copy(conn, os.Stdin)
		if c, ok := conn.(interface{ CloseWrite() error }); ok {
			c.CloseWrite()
		}
	})
	_, err = io.Copy(os.Stdout, conn)
	if o.has("l") {
		return err // stdin may stay open for ever
	}
	return err
}
