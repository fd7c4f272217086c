package dev.smolite.chat

import android.app.Activity
import android.content.Intent
import android.net.Uri
import android.os.Bundle
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import kotlin.concurrent.thread

private const val PICK = 1

/** One screen: open a model, talk with it, stop it. */
class MainActivity : Activity() {
    private lateinit var chat: Chat
    private lateinit var status: TextView
    private lateinit var transcript: TextView
    private lateinit var scroll: ScrollView
    private lateinit var input: EditText
    private lateinit var send: Button
    private lateinit var open: Button
    private var ready = false
    private var answering = false
    private var importing = false

    override fun onCreate(savedInstanceState: Bundle?) {
        super.onCreate(savedInstanceState)
        setContentView(R.layout.main)
        status = findViewById(R.id.status)
        transcript = findViewById(R.id.transcript)
        scroll = findViewById(R.id.scroll)
        input = findViewById(R.id.input)
        send = findViewById(R.id.send)
        open = findViewById(R.id.open)
        chat = Chat(cacheDir)
        send.setOnClickListener { if (answering) chat.stop() else say() }
        open.setOnClickListener { pick() }
        findViewById<Button>(R.id.anew).setOnClickListener { anew() }
        status.setText(R.string.no_model)
        show()
        findModel(this)?.let(::load)
    }

    override fun onDestroy() {
        chat.close()
        super.onDestroy()
    }

    private fun pick() {
        val intent = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("*/*")
        startActivityForResult(intent, PICK)
    }

    @Deprecated("Deprecated in Java")
    override fun onActivityResult(requestCode: Int, resultCode: Int, data: Intent?) {
        super.onActivityResult(requestCode, resultCode, data)
        val uri = data?.data
        if (requestCode == PICK && resultCode == RESULT_OK && uri != null) copy(uri)
    }

    private fun copy(uri: Uri) {
        val name = nameOf(this, uri)
        if (!name.endsWith(SUFFIX)) {
            status.text = getString(R.string.not_litertlm, name)
            return
        }
        importing = true
        show()
        thread {
            val copied = runCatching {
                importModel(applicationContext, uri) { onScreen { status.text = getString(R.string.copying, it) } }
            }
            onScreen {
                importing = false
                show()
                copied.fold(::load, ::report)
            }
        }
    }

    private fun load(file: File) {
        ready = false
        status.setText(R.string.loading)
        transcript.text = ""
        show()
        chat.stop()
        chat.open(file) { outcome ->
            onScreen {
                ready = outcome.isSuccess
                show()
                outcome.fold({ status.text = getString(R.string.ready, file.name, file.length() / 1e6) }, ::report)
            }
        }
    }

    private fun say() {
        val text = input.text.toString().trim()
        if (text.isEmpty()) return
        input.setText("")
        write("\n> $text\n")
        answering = true
        show()
        chat.send(text, onPiece = { onScreen { write(it) } }) { outcome ->
            onScreen {
                answering = false
                write("\n")
                show()
                outcome.fold({ if (it == Ending.FULL) status.setText(R.string.full) }, ::report)
            }
        }
    }

    private fun anew() {
        if (!ready) return
        chat.clear { outcome ->
            onScreen {
                transcript.text = ""
                outcome.onFailure(::report)
            }
        }
    }

    private fun write(piece: String) {
        transcript.append(piece) // plain text, never markup
        scroll.post { scroll.fullScroll(View.FOCUS_DOWN) }
        input.requestFocus()
    }

    private fun show() {
        send.setText(if (answering) R.string.stop else R.string.send)
        send.isEnabled = ready
        open.isEnabled = !answering && !importing
    }

    private fun report(error: Throwable) {
        status.text = getString(R.string.failed, error.message ?: error.javaClass.simpleName)
    }

    /** The runtime and the copy call from threads of their own; nothing is shown after the screen is gone. */
    private fun onScreen(change: () -> Unit) = runOnUiThread { if (!isDestroyed) change() }
}
