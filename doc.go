// Package gatepost is the vocabulary of the agent: what a record, a command, a terminal and an uplink are, and the small
// interfaces between them. It does no I/O and imports only the standard library; every other package may import it.
//
// Terminals come as three nouns with three lifetimes: a [Driver] (a family, made once), a [Device] (one configured
// terminal: settings, no connection) and a [Session] (one open conversation, thrown away on error). Far systems mirror
// them: an [UplinkDriver], an [Uplink] and a [Link]. When to connect, how often, and what to do with an answer is policy
// and belongs to package agent; drivers and uplinks know protocols.
package gatepost
