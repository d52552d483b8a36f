package main

import (
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// The interpreter computes $0, $$ and $! itself, in ways that suit a library. Programs get ours from variables.
const (
	varName = "__TINY_NAME"
	varLast = "__TINY_LAST_JOB"
	varPID  = "__TINY_PID" // of the shell that a background process belongs to
	// callBackground is the call that a background statement becomes; its argument is the statement's source.
	callBackground = "__tiny_background"
)

// rewrite prepares a statement for the interpreter.
func (s *session) rewrite(node syntax.Node) {
	syntax.Walk(node, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.ParamExp:
			if n.Param == nil {
				break
			}
			switch n.Param.Value {
			case "0":
				n.Param.Value, n.Short = varName, false
			case "!":
				n.Param.Value, n.Short = varLast, false
			case "$":
				n.Param.Value, n.Short = varPID, false
			}
		case *syntax.FuncDecl:
			s.functions[n.Name.Value] = source(n) // before its body is rewritten
		case *syntax.Stmt:
			if n.Background && n.Cmd != nil {
				background(n)
			}
		}
		return true
	})
}

func source(n syntax.Node) string {
	var src strings.Builder
	if err := syntax.NewPrinter().Print(&src, n); err != nil {
		return ""
	}
	return src.String()
}

// background turns "X &" into a call with the source of X, which a process of its own will run: a goroutine
// inside this one would have no process id and would end with the shell.
func background(n *syntax.Stmt) {
	word := func(part syntax.WordPart) *syntax.Word { return &syntax.Word{Parts: []syntax.WordPart{part}} }
	inner := *n
	inner.Background, inner.Comments, inner.Redirs = false, nil, nil
	src := source(&inner)
	if src == "" {
		return // stays with the interpreter
	}
	if len(n.Redirs) > 0 {
		// The process makes its redirections first, for itself: else it would hold on to our streams.
		streams := &syntax.Stmt{Redirs: n.Redirs, Cmd: &syntax.CallExpr{Args: []*syntax.Word{word(&syntax.Lit{Value: "exec"})}}}
		src = source(streams) + "\n" + src
	}
	n.Cmd = &syntax.CallExpr{Args: []*syntax.Word{
		word(&syntax.Lit{ValuePos: n.Position, Value: callBackground}),
		word(&syntax.SglQuoted{Left: n.Position, Value: src}),
	}}
	n.Background, n.Negated, n.Redirs = false, false, nil
}

// fed reports whether this process writes what the statement reads: a here-document.
func fed(stmt *syntax.Stmt) bool {
	return slices.ContainsFunc(stmt.Redirs, func(r *syntax.Redirect) bool {
		return r.Op == syntax.Hdoc || r.Op == syntax.DashHdoc || r.Op == syntax.WordHdoc
	})
}

// replaceable reports whether a statement is one plain command that may take the process of the shell: after the word exec, or
// as the last one. Nothing else may run while it is expanded.
func replaceable(stmt *syntax.Stmt, last bool) bool {
	call, ok := stmt.Cmd.(*syntax.CallExpr)
	if !ok || len(call.Args) == 0 || stmt.Background || stmt.Negated || stmt.Coprocess || stmt.Disown {
		return false
	}
	if lit := call.Args[0].Lit(); lit != "exec" && !last || lit == callBackground {
		return false
	}
	plain := !fed(stmt)
	syntax.Walk(stmt, func(n syntax.Node) bool {
		switch n.(type) {
		case *syntax.CmdSubst, *syntax.ProcSubst:
			plain = false
		}
		return plain
	})
	return plain
}
