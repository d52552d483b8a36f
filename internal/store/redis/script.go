package redis

import (
	"context"
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/tartarus-sandbox/tartarus"
)

//go:embed lua/*.lua
var sources embed.FS

// script is Lua that Redis runs as a whole. Its KEYS[1] is the prefix of all keys it touches.
type script struct {
	text, sha string
	write     bool // replicas are waited for, where that is asked for
}

func load(write bool, names ...string) *script {
	var text strings.Builder
	for _, n := range names {
		b, err := sources.ReadFile("lua/" + n + ".lua")
		if err != nil {
			panic(err) // built in: a missing one never gets past the first test
		}
		text.Write(b)
	}
	sum := sha1.Sum([]byte(text.String())) // the name that EVALSHA knows it by
	return &script{text: text.String(), sha: hex.EncodeToString(sum[:]), write: write}
}

var (
	pingScript   = load(false, "ping")
	layoutScript = load(true, "layout")

	enqueueScript = load(true, "queue", "enqueue")
	leaseScript   = load(true, "queue", "lease")
	renewScript   = load(true, "queue", "renew")
	reportScript  = load(true, "queue", "report")
	cancelScript  = load(true, "queue", "cancel")
	jobScript     = load(false, "queue", "job")
	keyedScript   = load(false, "queue", "keyed")
	requeueScript = load(true, "queue", "requeue")
	purgeScript   = load(true, "queue", "purge")
	tickScript    = load(true, "queue", "tick")

	putSandboxScript    = load(true, "sandboxes", "put_sandbox")
	removeSandboxScript = load(true, "sandboxes", "remove_sandbox")
	putNodeScript       = load(true, "put_node")

	putKeyScript    = load(true, "put_key")
	removeKeyScript = load(true, "remove_key")

	putNamedScript    = load(true, "put_named")
	getNamedScript    = load(false, "get_named")
	removeNamedScript = load(true, "remove_named")

	putRecordScript = load(true, "put_record")

	putPolicyScript    = load(true, "put_policy")
	getPolicyScript    = load(false, "get_policy")
	listPoliciesScript = load(false, "list_policies")

	putValueScript   = load(true, "put_value")
	listValuesScript = load(true, "list_values")
)

// run runs s where its keys are and returns its answer.
func (db *DB) run(ctx context.Context, s *script, prefix string, args ...any) (answer, error) {
	keys := []string{prefix}
	cmd, err := db.ask(ctx, prefix, &call{write: s.write, size: size(args), send: func(p goredis.Pipeliner, c *call) goredis.Cmder {
		if c.full {
			return p.Eval(ctx, s.text, keys, args...)
		}
		return p.EvalSha(ctx, s.sha, keys, args...)
	}})
	if err != nil {
		return nil, err
	}
	v, _ := cmd.(*goredis.Cmd).Val().([]any)
	return v, nil
}

// size is about how many bytes a script's call has: its name and key, and the arguments with their lengths.
func size(args []any) int {
	n := 100 + 8*len(args)
	for _, a := range args {
		switch v := a.(type) {
		case string:
			n += len(v)
		case []byte:
			n += len(v)
		}
	}
	return n
}

// field reads one field of a hash; none is goredis.Nil.
func (db *DB) field(ctx context.Context, prefix, key, field string) (string, error) {
	cmd, err := db.ask(ctx, prefix, &call{send: func(p goredis.Pipeliner, _ *call) goredis.Cmder { return p.HGet(ctx, prefix+key, field) }})
	if err != nil {
		return "", err
	}
	return cmd.(*goredis.StringCmd).Val(), nil
}

// at calls fn with the server that has prefix, within Timeout, and gives its errors a Kind. fn is called again only when
// the server said that it did nothing because it is not the one.
func (db *DB) at(ctx context.Context, prefix string, fn func(context.Context, *goredis.Client) error) error {
	select {
	case <-db.closing:
		return errClosed
	default:
	}
	bounded, cancel := context.WithTimeout(ctx, db.cfg.Timeout)
	defer cancel()
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		c, err := db.server(bounded, prefix)
		if err == nil {
			err = fn(bounded, c)
		}
		if err == nil || err == goredis.Nil {
			return err
		}
		if !db.cfg.Cluster || !elsewhere(err) {
			return db.trouble(ctx, err)
		}
		db.lost(bounded)
		select {
		case <-time.After(pause):
		case <-bounded.Done():
			return db.trouble(ctx, err)
		}
	}
}

// server finds the master that has prefix.
func (db *DB) server(ctx context.Context, prefix string) (*goredis.Client, error) {
	if c, ok := db.rdb.(*goredis.ClusterClient); ok {
		return c.MasterForKey(ctx, prefix)
	}
	return db.rdb.(*goredis.Client), nil
}

// elsewhere reports that a server of a cluster refused before it did anything.
func elsewhere(err error) bool {
	for _, word := range []string{"MOVED ", "ASK ", "TRYAGAIN ", "READONLY "} {
		if goredis.HasErrorPrefix(err, word) {
			return true
		}
	}
	return false
}

// trouble gives an error its Kind. What is the script's or ours stays Internal; everything else is Redis being away.
func (db *DB) trouble(ctx context.Context, err error) error {
	if e := ctx.Err(); e != nil {
		return e
	}
	select {
	case <-db.closing:
		return errClosed
	default:
	}
	if _, ok := errors.AsType[*tartarus.Error](err); ok {
		return err
	}
	var answer goredis.Error
	if errors.As(err, &answer) && (goredis.HasErrorPrefix(err, "ERR ") || goredis.HasErrorPrefix(err, "WRONGTYPE ")) && !strings.Contains(err.Error(), "max number of clients") {
		return err
	}
	return noAnswer(err)
}

// answer is a script's array.
type answer []any

func (a answer) text(i int) string {
	if i >= len(a) {
		return ""
	}
	switch v := a[i].(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	}
	return ""
}

func (a answer) number(i int) int64 {
	if i >= len(a) {
		return 0
	}
	switch v := a[i].(type) {
	case int64:
		return v
	case string:
		n, _ := strconv.ParseInt(v, 10, 64)
		return n
	}
	return 0
}

func (a answer) list(i int) answer {
	if i >= len(a) {
		return nil
	}
	l, _ := a[i].([]any)
	return l
}

// fields reads an array of names and values.
func (a answer) fields() map[string]string {
	m := make(map[string]string, len(a)/2)
	for i := 0; i+1 < len(a); i += 2 {
		m[a.text(i)] = a.text(i + 1)
	}
	return m
}

// micros is t as the scripts count, rounded up: what they compare with it then never happens too early.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	n := t.UnixMicro()
	if t.Nanosecond()%1000 != 0 {
		n++
	}
	return n
}

func moment(text string) time.Time {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// pairs reads an array of pairs.
func (a answer) pairs() [][2]string {
	out := make([][2]string, 0, len(a)/2)
	for i := 0; i+1 < len(a); i += 2 {
		out = append(out, [2]string{a.text(i), a.text(i + 1)})
	}
	return out
}
