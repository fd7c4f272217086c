package dev.smolite.chat

import com.google.ai.edge.litertlm.Backend
import com.google.ai.edge.litertlm.Conversation
import com.google.ai.edge.litertlm.ConversationConfig
import com.google.ai.edge.litertlm.Engine
import com.google.ai.edge.litertlm.EngineConfig
import com.google.ai.edge.litertlm.Message
import com.google.ai.edge.litertlm.MessageCallback
import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.Executors

/** How an answer ended. */
enum class Ending { DONE, STOPPED, FULL }

/**
 * A chat with one .litertlm file.
 *
 * Everything but [stop] is queued on one thread, a turn until its last piece; the functions given are called from other threads.
 * Template, stop token, sampler and cache length are those in the file.
 *
 * @param cacheDir where the runtime may keep prepared weights for a quicker start.
 */
class Chat(private val cacheDir: File) : AutoCloseable {
    private val worker = Executors.newSingleThreadExecutor()
    private val turns = mutableListOf<Message>()
    private var engine: Engine? = null
    @Volatile private var conversation: Conversation? = null
    @Volatile private var stopped = false

    /** Loads a file in place of the one before, which takes seconds. */
    fun open(file: File, onEnd: (Result<Unit>) -> Unit) = queue(onEnd) {
        release()
        turns.clear()
        // An engine whose `initialize` threw holds nothing, and must not be closed.
        engine = Engine(EngineConfig(file.path, Backend.CPU(), cacheDir = cacheDir.path)).also { it.initialize() }
        begin()
    }

    /** Says something. [onPiece] gets the answer piece by piece. */
    fun send(text: String, onPiece: (String) -> Unit, onEnd: (Result<Ending>) -> Unit) {
        stopped = false
        queue(onEnd) {
            val answer = StringBuilder()
            val error = if (stopped) null else stream(text) { piece ->
                // SentencePiece's leading space comes with the first piece.
                val shown = if (answer.isEmpty()) piece.trimStart() else piece
                answer.append(shown)
                if (shown.isNotEmpty()) onPiece(shown)
            }
            if (error != null && !stopped) { // a question that does not fit fails so
                turns.clear()
                begin()
                throw error
            }
            val full = answer.isEmpty() && !stopped // a cache without room gives empty answers
            if (full) turns.clear()
            if (answer.isNotEmpty()) turns += listOf(Message.user(text), Message.model(answer.toString()))
            // What was cut off has no end in the runtime's cache, so the next turn begins from the text.
            if (stopped || full) begin()
            if (full) Ending.FULL else if (stopped) Ending.STOPPED else Ending.DONE
        }
    }

    /** Ends the answer that is being written. */
    fun stop() {
        stopped = true
        runCatching { conversation?.cancelProcess() } // throws where the conversation has just been closed
    }

    /** Forgets what was said. */
    fun clear(onEnd: (Result<Unit>) -> Unit) {
        stop()
        queue(onEnd) {
            turns.clear()
            begin()
        }
    }

    override fun close() {
        stop()
        worker.execute { release() }
        worker.shutdown()
    }

    private fun <T> queue(onEnd: (Result<T>) -> Unit, work: () -> T) = worker.execute { onEnd(runCatching(work)) }

    /** Waits until the runtime has called for the last time. */
    private fun stream(text: String, onPiece: (String) -> Unit): Throwable? {
        val ended = CountDownLatch(1)
        var error: Throwable? = null
        val callback = object : MessageCallback {
            override fun onMessage(message: Message) = onPiece(message.toString())

            override fun onDone() = ended.countDown()

            override fun onError(throwable: Throwable) {
                error = throwable // a CancellationException after `stop`
                ended.countDown()
            }
        }
        checkNotNull(conversation) { "Open a model first." }.sendMessageAsync(text, callback)
        ended.await()
        return error
    }

    /** Begins a conversation with the turns so far; the runtime has room for one at a time. */
    private fun begin() {
        conversation?.close()
        conversation = null
        conversation = checkNotNull(engine) { "Open a model first." }
            .createConversation(ConversationConfig(initialMessages = turns.toList()))
    }

    private fun release() {
        conversation?.close()
        conversation = null
        engine?.close()
        engine = null
    }
}
